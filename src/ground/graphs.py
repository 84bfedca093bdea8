"""Functions of CUDA tensors as CUDA graphs: what hundreds of small kernels do, started by one call.

A step of a small network keeps a GPU waiting for Python: starting a kernel takes longer than the kernel. A graph is what a
function starts, recorded once, and starts all of it again on whatever its arguments' memory holds by then.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, ParamSpec, TypeVar, cast

import torch
from torch import Tensor

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")

WARM = 2  # runs before the recording, in which libraries choose their kernels and take their workspaces
Recording = tuple[torch.cuda.CUDAGraph, tuple[Tensor, ...], Any]  # the graph, where it reads its arguments, and what it gives


class Recorded(Generic[Arguments, Result]):
    """A function of tensors on a GPU, to one or several, recorded for each of the shapes that it is given.

    It depends on nothing else and asks the device for no number. The same kernels run as without a graph, so that the bytes are
    the same. What it gives is the caller's.
    """

    def __init__(self, function: Callable[Arguments, Result]):
        self._function: Callable[..., Any] = function
        self._recordings: dict[tuple[tuple[torch.Size, torch.dtype], ...], Recording] = {}

    def __call__(self, *arguments: Arguments.args, **_: Arguments.kwargs) -> Result:
        given = cast(tuple[Tensor, ...], arguments)
        shapes = tuple((one.shape, one.dtype) for one in given)
        if shapes not in self._recordings:
            self._recordings[shapes] = self._record(given)
        graph, held, found = self._recordings[shapes]
        for mine, theirs in zip(held, given, strict=True):
            mine.copy_(theirs)
        graph.replay()
        return cast(Result, found.clone() if isinstance(found, Tensor) else tuple(one.clone() for one in found))

    def _record(self, given: tuple[Tensor, ...]) -> Recording:
        held = tuple(one.detach().clone() for one in given)
        aside = torch.cuda.Stream(held[0].device)
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(WARM):
                self._function(*held)
        torch.cuda.current_stream().wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        # the memory of all: no two run at once, and what one gives is copied before the next. Not torch's graph_pool_handle,
        # which ends with the last graph in it: the next recording fails an assertion (torch 2.11)
        pool = next((one.pool() for one, *_ in self._recordings.values()), None)
        with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):  # checkpoints are written beside it
            found = self._function(*held)
        return graph, held, found
