"""Functions of CUDA tensors as CUDA graphs: what hundreds of small kernels do, started by one call.

A step of a small network keeps a GPU waiting for Python: starting a kernel takes longer than the kernel. A graph is what a
function starts, recorded once, and starts all of it again on whatever its arguments' memory holds by then.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Generic, ParamSpec, TypeVar, cast

import torch
from torch import Tensor

from src.ground.errors import UserError

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")

WARM = 2  # runs before the recording, in which libraries choose their kernels and take their workspaces
Recording = tuple[torch.cuda.CUDAGraph, tuple[Tensor, ...], Any]  # the graph, where it reads its arguments, and what it gives


class Recorded(Generic[Arguments, Result]):
    """A function of tensors, to one or several: on a GPU recorded for each of the shapes and strides that it is given.

    It depends on nothing else and asks the device for no number. The same kernels run as without a graph, so that the bytes are
    the same. What it gives is the caller's. Raises UserError where the function can't be recorded.
    """

    def __init__(self, function: Callable[Arguments, Result]):
        self._function: Callable[..., Any] = function
        self._recordings: dict[tuple[Any, ...], Recording] = {}

    def __call__(self, *arguments: Arguments.args, **named: Arguments.kwargs) -> Result:
        given = cast(tuple[Tensor, ...], arguments)
        assert not named, "a recording knows its arguments by their order"
        if not given[0].is_cuda:
            return cast(Result, self._function(*given))
        kinds = tuple((one.shape, one.stride(), one.dtype, one.device) for one in given)
        if kinds not in self._recordings:
            self._recordings[kinds] = self._record(given)
        graph, held, found = self._recordings[kinds]
        for mine, theirs in zip(held, given, strict=True):
            mine.copy_(theirs)
        graph.replay()
        return cast(Result, found.clone() if isinstance(found, Tensor) else tuple(one.clone() for one in found))

    def _record(self, given: tuple[Tensor, ...]) -> Recording:
        held, device = tuple(one.detach().clone() for one in given), given[0].device
        aside, first = _place(device)
        aside.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(aside):
            for _ in range(WARM):
                self._function(*held)
        torch.cuda.current_stream(device).wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        try:
            with _recording(graph, aside, first.pool()):
                found = self._function(*held)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            said = str(error).splitlines()[0]
            raise UserError(f"CUDA could not record a step as a graph ({said}): set runtime.compile to 'off'") from error
        return graph, held, found


@functools.cache
def _place(device: torch.device) -> tuple[torch.cuda.Stream, torch.cuda.CUDAGraph]:
    """A stream of a device to record on, and a first graph, whose memory all others take.

    They may, as no two run at once, and what one gives is copied before the next. That memory ends with the last graph in it,
    after which recordings fail an assertion of torch's (2.11), so that one stays.
    """
    stream, first = torch.cuda.Stream(device), torch.cuda.CUDAGraph()
    with _recording(first, stream, None):
        torch.zeros(1, device=device)
    return stream, first


def _recording(graph: torch.cuda.CUDAGraph, stream: torch.cuda.Stream, pool: Any) -> torch.cuda.graph:
    """Other threads, as those that pass gradients between GPUs, go on beside it."""
    return torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local")
