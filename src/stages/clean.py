"""clean: lists the checkpoints of long stages, and deletes those that nothing will continue. No stage of the pipeline."""

from __future__ import annotations

import functools
import json
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from src.ground import runtime
from src.ground.durations import duration
from src.ground.errors import UserError
from src.pages.tables import Table
from src.process.progress import say
from src.settings.networks import Network
from src.settings.resolved import Pipeline, Run
from src.stages import records, work
from src.store import checkpoints, files
from src.store.store import Store
from src.store.values import Record

KIB = 2**10
# names that are no entry's of params.yaml: variants of studies, snapshots, files; the same command goes on from these
OTHERS = re.compile(r"(?:snapshot|file)-.+@.+|.+-[0-9a-f]{12}(?:-\d+-\d+)?(?:@.+)?")


@dataclass(frozen=True)
class Leftover:
    """A file of a checkpoint, and what it is to params.yaml, inputs and code as they are now."""

    path: Path
    stage: str
    name: str
    state: str  # current, stale, unknown where its inputs are missing, or another command's


def run(store: Store, pipeline: Pipeline, yes: bool, everything: bool) -> None:
    """List checkpoints; with `yes` delete what is stale, with `everything` all of it.

    What is half written is listed where the process that wrote it is gone.
    """
    definitions = _definitions(store, pipeline)
    found = [_leftover(path, definitions) for path in checkpoints.found() if files.is_abandoned(path)]
    Console(highlight=False, markup=False).print(_table(found))
    doomed = [one for one in found if everything or one.state == "stale"]
    size = sum(one.path.stat().st_size for one in doomed) / KIB
    if not yes:
        say(f"{len(doomed)} of {len(found)} files, {size:,.0f} KiB, would be deleted: add --yes to do it")
        return
    for one in doomed:
        one.path.unlink(missing_ok=True)
    say(f"{len(doomed)} of {len(found)} files, {size:,.0f} KiB, are deleted")


def _definitions(store: Store, pipeline: Pipeline) -> dict[tuple[str, str], Mapping[str, Any] | None]:
    """What defines each piece of work now; None where that can't be told, as inputs are missing."""
    makers: dict[tuple[str, str], tuple[Callable[[], Record], Network]] = {}
    targets: dict[tuple[str, str], Sequence[str]] = {}
    for buffer in pipeline.buffers.values():
        makers["experts", buffer.name] = functools.partial(records.experts_record, store, buffer), buffer.spec
    for run in pipeline.runs.values():
        makers["distill", run.name] = functools.partial(_iterations_record, store, run), run.spec
        targets["distill", run.name] = run.distillation.targets
        for network, spec in pipeline.networks.items():  # those that only --networks named too
            makers["evaluate", f"{run.name}@{network}"] = functools.partial(_students_record, store, run, spec), spec
    device = runtime.start(pipeline.runtime)
    found: dict[tuple[str, str], Mapping[str, Any] | None] = {}
    for (stage, name), (make, spec) in makers.items():
        if not (checkpoints.folder() / stage / name).exists():
            continue
        try:
            record = work.whole(make(), pipeline.runtime, stage, device)
            found[stage, name] = work.definition(stage, record, spec, targets.get((stage, name), ()))
        except (UserError, OSError):
            found[stage, name] = None
    return found


def _iterations_record(store: Store, run: Run) -> Record:
    return records.iterations_record(records.synthetic_record(store, run))


def _students_record(store: Store, run: Run, spec: Network) -> Record:
    return records.students_record(store, run, spec, store.load_synthetic(run.name))


def _leftover(path: Path, definitions: Mapping[tuple[str, str], Mapping[str, Any] | None]) -> Leftover:
    about = checkpoints.read(path)
    if not about:  # damaged, or half-written by a process that was killed
        stage, name, *_ = (*path.relative_to(checkpoints.folder()).parts[:-1], "-", "-")
        return Leftover(path, stage, name, "stale")
    stage, name = about["stage"], about["name"]
    if (stage, name) not in definitions and OTHERS.fullmatch(name):
        return Leftover(path, stage, name, "of a study, snapshots or a file")
    now = definitions.get((stage, name), {})  # a name that params.yaml has no more makes nothing current
    if now is None:
        return Leftover(path, stage, name, "unknown")
    made = {key: value for key, value in about["definition"].items() if key != "backend"}
    return Leftover(path, stage, name, "current" if made == json.loads(json.dumps(now)) else "stale")


def _table(found: list[Leftover]) -> Table:
    table = Table("stage", "name", "file", "age", "size, KiB", "state", title="checkpoints")
    for one in found:
        about = one.path.stat()
        age = duration(max(time.time() - about.st_mtime, 0.0))
        table.add_row(one.stage, one.name, one.path.name, age, f"{about.st_size / KIB:,.0f}", one.state)
    return table
