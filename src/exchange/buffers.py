"""Expert buffers of MTT's family (MTT, FTD, ATT, TESLA, DATM): replay_buffer_0.pt, replay_buffer_1.pt, ...

Such a file is a list of trajectories, a trajectory a list of T + 1 snapshots, a snapshot a list of the network's parameters in
the order of `parameters()`. One after the other they are theta (P,), in which our networks have the same order.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from src.exchange import pickles
from src.exchange.recognition import Shapes, check_network
from src.ground.errors import ArtifactError
from src.maths.networks import ImageShape
from src.settings.networks import Network
from src.sources.trees import natural

PATTERN = "replay_buffer_*.pt"
FORM = "a buffer is a list of trajectories, each a list of snapshots, each a list of tensors"
ANOTHER = "use another copy of the buffer, or leave this file out"

Asked = tuple[Network, ImageShape]
Snapshots = list[list[Tensor]]


@dataclass(frozen=True)
class Trajectory:
    """One expert of a buffer."""

    path: Path
    index: int  # its place in the file, from 0
    theta: Tensor  # (T + 1, P) in float32, theta*_0 .. theta*_T, a copy that needs the file no more
    shapes: Shapes  # of the parameters in theta

    @property
    def title(self) -> str:
        return f"trajectory {self.index} of {self.path}"


def files_of(path: Path) -> list[Path]:
    """The buffer files of a folder, replay_buffer_2 before replay_buffer_10; or the one file. Raises ArtifactError."""
    if path.is_dir():
        found = sorted(path.glob(PATTERN), key=lambda file: natural(file.name))
        if not found:
            raise ArtifactError(f"{path} holds no {PATTERN}: give the folder that buffer.py wrote to, or one such file")
        return found
    if not path.exists():
        raise ArtifactError(f"{path} does not exist: give a folder of {PATTERN} files, or one such file")
    return [path]


def shapes_of(path: Path) -> Shapes:
    """Shapes of the parameters of a file's first snapshot, to find out the network by. Raises ArtifactError."""
    return _shapes(_snapshots(_trajectories(path)[0], f"trajectory 0 of {path}"), f"trajectory 0 of {path}")


def read(paths: Sequence[Path], asked: Asked | None = None) -> Iterator[Trajectory]:
    """The trajectories of these files one by one, all of one length and of one network: of `asked`, where it is given.

    Memory holds one trajectory beside what the file system keeps of one file. Raises ArtifactError with the file, trajectory
    and snapshot where anything is not as it should be, once it is reached.
    """
    first: Trajectory | None = None
    for path in paths:
        for trajectory in _of_file(path):
            if first is None:
                if asked is not None:
                    check_network(trajectory.shapes, *asked)
                first = replace(trajectory, theta=torch.empty(len(trajectory.theta), 0))  # its form, without its numbers
            _check_alike(trajectory, first)
            yield trajectory


def _of_file(path: Path) -> Iterator[Trajectory]:
    for index, value in enumerate(_trajectories(path)):
        title = f"trajectory {index} of {path}"
        snapshots = _snapshots(value, title)
        shapes = _shapes(snapshots, title)
        yield Trajectory(path, index, _flat(snapshots, shapes, title), shapes)


def _trajectories(path: Path) -> Sequence[object]:
    found = pickles.load(path)
    if not isinstance(found, list | tuple):
        raise ArtifactError(f"{path} holds {_kind(found)}, but {FORM}: {ANOTHER}")
    if not found:
        raise ArtifactError(f"{path} holds no trajectory, but {FORM}: {ANOTHER}")
    return found


def _snapshots(value: object, title: str) -> Snapshots:
    """The snapshots of a trajectory, each a list of sound tensors."""
    if not isinstance(value, list | tuple) or not value:
        raise ArtifactError(f"{title} is {_kind(value)}, but {FORM}: {ANOTHER}")
    if len(value) < 2:
        raise ArtifactError(f"{title} has a single snapshot, but there is nothing to match without a second one: {ANOTHER}")
    for number, snapshot in enumerate(value):
        if not isinstance(snapshot, list | tuple) or not snapshot:
            raise ArtifactError(f"snapshot {number} of {title} is {_kind(snapshot)}, but {FORM}: {ANOTHER}")
        for place, tensor in enumerate(snapshot, start=1):
            flaw = _flaw(tensor)
            if flaw:
                raise ArtifactError(f"parameter {place} in snapshot {number} of {title} is {flaw}, but {FORM}: {ANOTHER}")
    return [list(snapshot) for snapshot in value]


def _flaw(value: object) -> str | None:
    """What makes it no tensor of real numbers, if anything does."""
    found = pickles.flaw(value)
    if found is None and isinstance(value, Tensor) and not value.is_floating_point():
        return f"a tensor of {str(value.dtype).removeprefix('torch.')} and not of real numbers"
    return found


def _shapes(snapshots: Snapshots, title: str) -> Shapes:
    """Of the parameters; raises ArtifactError unless all snapshots have the same."""
    found = [tuple(tuple(tensor.shape) for tensor in snapshot) for snapshot in snapshots]
    for number, shapes in enumerate(found):
        if shapes != found[0]:
            difference = _first_difference(shapes, found[0])
            raise ArtifactError(f"snapshot {number} of {title} is of another network than snapshot 0 ({difference}): {ANOTHER}")
    return found[0]


def _flat(snapshots: Snapshots, shapes: Shapes, title: str) -> Tensor:
    """(T + 1, P) in float32, as a copy."""
    theta = torch.empty(len(snapshots), sum(map(math.prod, shapes)))
    for row, snapshot in zip(theta, snapshots, strict=True):
        row.copy_(torch.cat([tensor.detach().reshape(-1).float() for tensor in snapshot]))
    for number, row in enumerate(theta):
        if not row.isfinite().all():
            count = int((~row.isfinite()).sum())
            raise ArtifactError(f"snapshot {number} of {title} holds {count:,} numbers that are not finite: {ANOTHER}")
    _check_moves(theta, title)
    return theta


def _check_moves(theta: Tensor, title: str) -> None:
    """On CPUs `p.detach().cpu()` copies nothing: each snapshot then is the network as it was at the end."""
    still = [number for number in range(len(theta) - 1) if torch.equal(theta[number], theta[number + 1])]
    if len(still) == len(theta) - 1:
        cause = "as where a network on a CPU was saved by `p.detach().cpu()`, which copies nothing there"
        raise ArtifactError(
            f"all {len(theta)} snapshots of {title} are equal, {cause}: train the experts with `.clone()` added"
        )
    if still:
        pair = f"snapshots {still[0]} and {still[0] + 1} of {title} are equal"
        raise ArtifactError(f"{pair}, though an epoch lies between them, so that nothing can be matched there: {ANOTHER}")


def _check_alike(found: Trajectory, first: Trajectory) -> None:
    if found.shapes != first.shapes:
        difference = _first_difference(found.shapes, first.shapes)
        raise ArtifactError(f"{found.title} is of another network than {first.title} ({difference}): {ANOTHER}")
    if len(found.theta) != len(first.theta):
        counts = f"{len(found.theta)} snapshots, where {first.title} has {len(first.theta)}"
        raise ArtifactError(f"{found.title} has {counts}: use files of one run of buffer.py")


def _first_difference(found: Shapes, wanted: Shapes) -> str:
    for place, (one, two) in enumerate(zip(found, wanted, strict=False), start=1):
        if one != two:
            return f"parameter {place} has the shape {one}, not {two}"
    return f"{len(found)} parameters, not {len(wanted)}"


def _kind(value: object) -> str:
    """What it is, in words."""
    if isinstance(value, list | tuple):
        return f"a {type(value).__name__} of {len(value)}" if value else f"an empty {type(value).__name__}"
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    return f"an object of type {type(value).__name__}"
