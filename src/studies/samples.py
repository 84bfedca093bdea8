"""Samples of recorded work, done again with the code of now: each says what it compared, and by how much that differs."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from src.ground import runtime
from src.loops import expert, outer
from src.loops import students as loops
from src.loops.outer import Distilling, Loop
from src.process import workers
from src.settings.resolved import Buffer, DataSet, Run
from src.stages import distill, evaluate, experts, prepare
from src.stages.records import prepared
from src.store import checkpoints, files, tensors
from src.store.store import Store, remake

ITERATIONS = 5  # first ones of a distillation


@dataclass(frozen=True)
class Compared:
    """One comparison; the difference is in words, None where there is none."""

    what: str
    difference: str | None


def of_data_set(store: Store, dataset: DataSet) -> Iterator[Compared]:
    """The whole stage, in a folder of its own: it takes seconds."""
    with tempfile.TemporaryDirectory() as place:
        again = Store(Path(place) / "data")
        prepare.run(again, dataset)
        for path in sorted(store.dataset_folder(dataset.name).glob("*.safetensors")):
            (_, old), (_, new) = (tensors.read_whole(one, "") for one in (path, again.dataset_folder(dataset.name) / path.name))
            yield _all(path.name, new, old)
        found, recorded = (vars(one.load_statistics(dataset.name)) for one in (again, store))
        others = [name for name in recorded | found if found.get(name) != recorded.get(name)]
        yield Compared("statistics.json", f"in {', '.join(others)}" if others else None)


def of_buffer(store: Store, buffer: Buffer) -> Iterator[Compared]:
    """The first expert's first epoch: its snapshots, and its row of the curves."""
    device = runtime.start(buffer.runtime.model_copy(update={"threads": workers.threads(buffer.runtime)}))
    training, _ = experts.training_of(store, buffer, prepared(store, buffer.dataset, "train", "val"), device)
    one = expert.first(training, 0, device)
    for one in expert.steps(training, 0, one, device):  # noqa: B020, each takes the place of the one before
        if one.state.between_epochs:
            break
    trajectory, rows = expert.curves(training, one)
    yield _equal("expert 0 after its first epoch", trajectory, store.read_snapshots(buffer.name, 0, 0, 2))
    recorded = files.read_csv(store.expert_curves_file(buffer.name), remake("experts", buffer.name))
    yield _told("that epoch's figures", rows, recorded)


def of_synthetic(store: Store, run: Run) -> Iterator[Compared]:
    """The start, the first iterations, and those since the last state that the run's checkpoint holds."""
    device = runtime.start(run.runtime)
    statistics = prepared(store, run.dataset, "train")
    images, labels = distill.initial_images(store, run, statistics, device)
    loop, _, _ = distill.loop_of(store, run, statistics, images, labels)
    recorded, snapshots = store.load_synthetic(run.name), store.load_snapshots(run.name)
    at = outer.first(loop, images)
    begun = snapshots.pixels[0] if len(snapshots.iterations) else recorded.pixels
    if run.distillation.given is None and run.initial is None:
        yield _equal("the initial images", at.snapshots[0].pixels, begun)
    if run.distillation.iterations:
        yield _first(store, loop, at)
        yield from _last(loop, recorded.pixels)


def _first(store: Store, loop: Loop, at: Distilling) -> Compared:
    """Figures of the first iterations."""
    count = min(ITERATIONS, loop.distil.iterations)
    while at.iteration < count:
        at = outer.iterate(loop, at)
    rows = files.read_csv(store.history_file(loop.name), remake("distill", loop.name))
    return _told(f"the first {count} iterations' figures", at.rows, rows)


def _last(loop: Loop, pixels: Tensor) -> Iterator[Compared]:
    """From the checkpoint of the recorded images, where there is one: iterations since its last anchor."""
    total = loop.distil.iterations
    for path in sorted((checkpoints.folder() / "distill" / loop.name).glob("*.safetensors")):
        stored = checkpoints.stored(path)
        ended = outer.resumed(loop, stored) if stored and len(stored[1]["rows"]) == total else None
        if ended is None or not torch.equal(ended.snapshots[total].pixels, pixels):
            continue
        begun = total // outer.ANCHOR_ITERATIONS * outer.ANCHOR_ITERATIONS
        if begun < total:
            at = replace(ended, state=ended.anchor, rows=ended.rows[:begun], snapshots={})
            while at.iteration < total:
                at = outer.iterate(loop, at)
            yield _equal(f"the images after the last {total - begun} iterations", at.snapshots[total].pixels, pixels)
        return


def of_students(store: Store, run: Run) -> Iterator[Compared]:
    """The first student of the run's own network: what it predicts, and its figures. Of others means alone are kept."""
    for network in run.cross:
        yield Compared(f"students of {network}", "unknown: they are not sampled")
    device = runtime.start(run.runtime.model_copy(update={"threads": workers.threads(run.runtime)}))
    statistics, synthetic = evaluate.inputs(store, run)
    training = evaluate.training_of(store, run, run.spec, synthetic, statistics, device)
    students = loops.start(training, 0, device)
    for _ in students.epochs(run.evaluation.epochs):
        pass
    predicted = {split: loops.predict(training, split, students.predictors(), device)[0].cpu() for split in evaluate.SPLITS}
    row = files.read_csv(store.students_file(run.name), remake("evaluate", run.name))[0]
    task = evaluate.task_of(run, statistics)
    for split, measured in predicted.items():
        for name, found in task.figures(measured, store.load_labels(run.dataset.name, split)).items():
            yield _figure(f"student 0's {split} {name}", found, float(row[f"{split}_{name}"]))
    if run.dataset.tuples:
        return
    names = [row["predicted"] for row in files.read_csv(store.predictions_file(run.name), remake("evaluate", run.name))]
    same = [statistics.classes[int(label)] for label in predicted["test"]] == names
    yield Compared("what student 0 predicts on the test split", None if same else "in some images")


def _figure(what: str, new: float, old: float) -> Compared:
    return Compared(what, None if f"{new:.9g}" == f"{old:.9g}" else f"{100 * (new - old):+.2f} points")


def _told(what: str, new: Sequence[Mapping[str, Any]], recorded: Sequence[Mapping[str, str]]) -> Compared:
    """Rows, against the first ones of a table, to the nine digits that it has."""
    told = [{name: f"{value:.9g}" if isinstance(value, float) else str(value) for name, value in row.items()} for row in new]
    old = list(recorded[: len(told)])
    if told == old:
        return Compared(what, None)
    if (mine := list(told[0])) != (its := list(old[0])):
        return Compared(what, f"columns {', '.join(mine)} instead of {', '.join(its)}")
    figures = [(name, row) for name, value in new[0].items() if isinstance(value, float) for row in range(len(new))]
    apart = (abs(new[row][name] / before - 1) for name, row in figures if (before := float(old[row][name])))
    return Compared(what, f"by up to {max(apart, default=0.0):.2g} of themselves")


def _equal(what: str, new: Tensor, old: Tensor) -> Compared:
    if torch.equal(new, old):
        return Compared(what, None)
    if new.shape != old.shape:
        return Compared(what, f"shape {tuple(new.shape)} instead of {tuple(old.shape)}")
    apart = (new.double() - old.double()).abs()
    return Compared(what, f"by up to {apart.max().item():.3g} in {(apart > 0).double().mean().item():.0%} of the numbers")


def _all(what: str, new: Mapping[str, Any], old: Mapping[str, Any]) -> Compared:
    if new.keys() != old.keys():
        return Compared(what, f"holds {', '.join(new)} instead of {', '.join(old)}")
    each = (_equal(what, new[name], old[name]) for name in old)
    return next((one for one in each if one.difference), Compared(what, None))
