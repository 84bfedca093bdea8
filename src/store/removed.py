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

from src.process.progress import say
from src.settings.resolved import Pipeline
from src.store import checkpoints
from src.store.store import Store

FOLDER = "removed"
FOLDERS = ("prepare", "experts", "distill", "evaluate", "metrics")  # that the report depends on
SHOWN = 6  # paths of a line


def outputs(store: Store, stage: str, name: str) -> tuple[Path, ...]:
    """All that a stage makes of one name, as dvc.yaml has it."""
    if stage == "prepare":
        splits = (store.split_file(name, split) for split in ("train", "val", "test"))
        return (*splits, store.space_file(name), store.statistics_file(name))
    if stage == "experts":
        return store.trajectories_folder(name), store.expert_curves_file(name)
    if stage == "distill":
        return store.synthetic_file(name), store.snapshots_file(name), store.history_file(name)
    scores = store.metrics_file(name), store.networks_file(name), store.scores_file(name)
    return (*scores, store.students_file(name), store.predictions_file(name))


def set_aside(store: Store, pipeline: Pipeline) -> None:
    """Move all that no stage of the pipeline makes out of the report's folders, and say so.

    Raises UserError, with all in its place, where another process is at some of it.
    """
    runs = pipeline.runs
    names = {"prepare": pipeline.data_sets, "experts": pipeline.buffers, "distill": runs, "evaluate": runs}
    kept = {path for stage, own in names.items() for name in own for path in outputs(store, stage, name)}
    kept |= {
        Path(place) for own in pipeline.data_sets.values() for place in (own.settings.source, own.settings.path) if place
    }  # one's own images
    kept.add(store.no_experts)
    found = [path for folder in FOLDERS for path in _strangers(store.data / folder, kept)]
    if not found:
        return
    place = store.data / FOLDER / f"{datetime.now():%Y-%m-%d_%H-%M-%S-%f}"
    with ExitStack() as alone:
        for stage, name in sorted({path.relative_to(store.data).parts[:2] for path in found}):
            alone.enter_context(checkpoints.at_work(stage, name))
        listed = ", ".join(path.as_posix() for path in found[:SHOWN]) + (", ..." if len(found) > SHOWN else "")
        say(f"moved to {place}, as no stage of params.yaml makes it: {listed}")
        for path in found:
            target = place / path.relative_to(store.data)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.move(path, target)


def take_back(store: Store, experts: str) -> None:
    """Move the experts back that were set aside last under this name, unless there are some: DVC would have them trained again.

    Of all other artifacts it finds those that it has made before.
    """
    folder = store.trajectories_folder(experts)
    found = sorted((store.data / FOLDER).glob(f"*/{folder.relative_to(store.data)}"))
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
