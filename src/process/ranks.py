"""One run on several processes, as torchrun starts them: all of them hold the same state, and share out each step's images.

Rank 0 keeps what becomes of the run, and speaks; the others only work along. A stop is agreed on: who is asked to passes it on
with its next numbers, and all end at the same step. Where one of them is gone the others end, with one sentence.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import os
import re
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from src.ground.errors import InterruptedWorkError, UserError
from src.maths.derivatives import Derivatives
from src.maths.shared_out import SharedOut
from src.process import stopping
from src.settings.runtime import Runtime

WAIT_SECONDS = 50.0  # for the numbers of another rank, before it counts as gone
LOADING_SECONDS = 3600.0  # for what rank 0 tells, which it may have to read and check a large buffer for
LAST_WORDS_SECONDS = 10.0  # for rank 0 to have ended
POLL_SECONDS = 0.1
SHOWN = 100  # characters of what torch says
SPOKEN = "ast-spoken"

Value = TypeVar("Value")


class LostRankError(InterruptedWorkError):
    """Another process of this run is gone."""


@dataclass(frozen=True)
class Ranks:
    """The processes of a run, as one of them sees them."""

    rank: int
    count: int
    store: Any  # torchrun's, which outlives any of them
    patient: Any = None  # the same processes, as a group that waits while rank 0 loads

    def shared_out(self, own: Derivatives) -> Derivatives:
        return SharedOut(own, self.rank, self.count, self._gathered)

    def told(self, value: Value) -> Value:
        """What rank 0 has."""
        box = [value]
        with _lost():
            dist.broadcast_object_list(box, src=0, group=self.patient)
        return box[0]

    def _gathered(self, mine: Tensor) -> Tensor:
        """(n,) of each rank, (G, n); raises InterruptedWorkError on all where one was asked to stop."""
        sent = torch.cat((mine, mine.new_full((1,), float(stopping.requested()))))
        each = [torch.empty_like(sent) for _ in range(self.count)]
        with _lost():
            dist.all_gather(each, sent)
        found = torch.stack(each)
        if found[:, -1].any():
            stopping.agree()
        return found[:, :-1]


def alone() -> bool:
    """Whether this process is the only one that works on its run, as torchrun tells it."""
    return int(os.environ.get("WORLD_SIZE", "1")) == 1


@contextmanager
def joined(asked: Runtime, name: str) -> Iterator[Ranks | None]:
    """The ranks that work on the run of this name; None where this process is the only one.

    Of what ends the block one sentence is left: rank 0's, or where that is gone the first of the others'.
    """
    if alone():
        yield None
        return
    found = _group(asked.device)
    ended = f"ast-ended {name}"
    try:
        with stopping.together():
            yield found
    except UserError as error:
        stopping.speak_last()
        if found.rank and not _must_speak(found, ended, error):
            sys.exit(error.exit_code)
        raise
    finally:
        if found.rank == 0:
            with contextlib.suppress(RuntimeError):
                found.store.set(ended, "1")


def _must_speak(found: Ranks, ended: str, error: UserError) -> bool:
    """Whether rank 0 is gone, and no other has said so."""
    deadline = time.monotonic() + LAST_WORDS_SECONDS
    with contextlib.suppress(RuntimeError):  # torchrun itself is gone
        while time.monotonic() < deadline:
            if found.store.check([ended]):
                return False
            time.sleep(POLL_SECONDS)
        return isinstance(error, LostRankError) and int(found.store.add(SPOKEN, 1)) == 1
    return True


@functools.cache
def _group(device: str) -> Ranks:
    """The process group, until this process ends; of NCCL where there are GPUs, else of gloo."""
    local, gpus = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count() if device != "cpu" else 0
    if gpus and local >= gpus:
        raise UserError(f"torchrun started {local + 1} processes or more, and there are {gpus} GPUs: lower --nproc_per_node")
    if gpus:
        torch.cuda.set_device(local)
    os.environ.setdefault("TORCH_NCCL_BLOCKING_WAIT", "1")  # a rank that is gone is an error here, not the end of this process
    dist.init_process_group("nccl" if gpus else "gloo", timeout=timedelta(seconds=WAIT_SECONDS))
    atexit.register(dist.destroy_process_group)  # threads of it that outlive the interpreter abort what has ended well
    patient = dist.new_group(timeout=timedelta(seconds=LOADING_SECONDS))
    return Ranks(dist.get_rank(), dist.get_world_size(), dist.distributed_c10d._get_default_store(), patient)


@contextmanager
def _lost() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        stopping.overhear()
        why = re.sub(r"^\[.*?\] ", "", str(error).splitlines()[0])[:SHOWN].rstrip(": ")  # without a place in torch's source
        raise LostRankError(
            f"Stopped: another process of this run is gone, most often because memory ran out ({why}): what is done up to the "
            "last checkpoint is kept, and the same command goes on from there, also with another --nproc_per_node"
        ) from None
