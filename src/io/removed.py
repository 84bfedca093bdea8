"""Artifacts of names that params.yaml has no more: set aside in data/removed, and taken back where the name returns.

The report depends on the folders of all runs, as DVC can name no list of files there. DVC itself leaves what a stage has made
that is gone from params.yaml: it would be in dvc.lock, and in no clone. DVC digests a stage's dependencies after its command,
so that what the report's own command sets aside is no part of them.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import datetime
from pathlib import Path

from src.ground.params import Params
from src.io import artifacts, checkpoints
from src.io.progress import say

FOLDER = artifacts.DATA / "removed"
FOLDERS = ("prepare", "experts", "distill", "evaluate", "metrics")  # that the report depends on
SHOWN = 6  # paths of a line


def outputs(stage: str, name: str) -> tuple[Path, ...]:
    """All that a stage makes of one name, as dvc.yaml has it."""
    if stage == "prepare":
        splits = (artifacts.split_file(name, split) for split in ("train", "val", "test"))
        return (*splits, artifacts.space_file(name), artifacts.statistics_file(name))
    if stage == "experts":
        return artifacts.trajectories_folder(name), artifacts.expert_curves_file(name)
    if stage == "distill":
        return artifacts.synthetic_file(name), artifacts.snapshots_file(name), artifacts.history_file(name)
    scores = artifacts.metrics_file(name), artifacts.networks_file(name)
    return (*scores, artifacts.students_file(name), artifacts.predictions_file(name))


def set_aside(params: Params) -> None:
    """Move all that no stage of `params` makes out of the report's folders, and say so.

    Raises UserError, with all in its place, where another process is at some of it.
    """
    names = {"prepare": params.prepare, "experts": params.experts, "distill": params.runs, "evaluate": params.runs}
    kept = {path for stage, own in names.items() for name in own for path in outputs(stage, name)}
    kept |= {Path(place) for own in params.prepare.values() for place in (own.source, own.path) if place}  # one's own images
    kept.add(artifacts.NO_EXPERTS)
    found = [path for folder in FOLDERS for path in _strangers(artifacts.DATA / folder, kept)]
    if not found:
        return
    place = FOLDER / f"{datetime.now():%Y-%m-%d_%H-%M-%S-%f}"
    with ExitStack() as alone:
        for stage, name in sorted({path.relative_to(artifacts.DATA).parts[:2] for path in found}):
            alone.enter_context(checkpoints.at_work(stage, name))
        listed = ", ".join(path.as_posix() for path in found[:SHOWN]) + (", ..." if len(found) > SHOWN else "")
        say(f"moved to {place}, as no stage of params.yaml makes it: {listed}")
        for path in found:
            target = place / path.relative_to(artifacts.DATA)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.move(path, target)


def take_back(experts: str) -> None:
    """Move the experts back that were set aside last under this name, unless there are some: DVC would have them trained again.

    Of all other artifacts it finds those that it has made before.
    """
    folder = artifacts.trajectories_folder(experts)
    found = sorted(FOLDER.glob(f"*/{folder.relative_to(artifacts.DATA)}"))
    if found and not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(found[-1], folder)
        say(f"{experts}: taken back from {found[-1]}")


def _strangers(folder: Path, kept: set[Path]) -> Iterator[Path]:
    """The highest paths below a folder that are not kept and hold nothing that is; hidden ones are DVC's and half-written."""
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if path in kept or path.name.startswith("."):
            continue
        if any(one.is_relative_to(path) for one in kept):
            yield from _strangers(path, kept)
        else:
            yield path
