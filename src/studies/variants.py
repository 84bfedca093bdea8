"""Variants: a run with other parameters, made by the pipeline's own stages in a workspace that the pipeline knows nothing of.

A workspace is a folder that looks to the stages like the repository's top: it has the data set's training and validation
splits (the test split is not there unless asked for), and its own experts and synthetic sets, named by their content, so that
variants share what they can and nothing is made twice.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from filelock import FileLock

from src.ground import runtime
from src.ground.errors import ArtifactError, InterruptedWorkError
from src.ground.params import Params, parse
from src.ground.seeding import seed_of
from src.ground.settings import Protocol, Runtime
from src.io import artifacts, checkpoints, files, tracking
from src.io.artifacts import SyntheticSet
from src.io.tracking import Tracker
from src.maths import scores
from src.stages import distill, evaluate, experts
from src.stages.outer_loop import Watch
from src.stages.records import experts_record, synthetic_settings

SHOWN = 50  # characters of a run's name in its variants': with a digest behind them they are a name still
PROTOCOL = "study"  # the name of the evaluation protocol in a variant's parameters

Accuracies = Mapping[str, tuple[float, ...]]  # split -> accuracy of each student
Judge = Callable[
    [int, float], None
]  # takes an iteration and the mean validation accuracy there; an error of it ends the variant


@dataclass(frozen=True)
class Changes:
    """What a variant has other than its run."""

    distill: Mapping[str, Any] = field(default_factory=dict)
    experts: Mapping[str, Any] = field(default_factory=dict)
    seed: int | None = None  # the root of all random numbers


@dataclass(frozen=True)
class Variant:
    """A run in parameters of its own; both it and its experts are named by their content."""

    params: Params
    name: str
    lender: str  # the pipeline's experts, which are taken where they are the same

    @property
    def experts(self) -> str:
        return self.params.matched(self.name)[0]


@dataclass(frozen=True)
class Workspace:
    """A folder to make variants in, and the repository's top that it borrows from; both absolute."""

    folder: Path
    source: Path

    def lend(self, dataset: str, test: bool = False) -> None:
        """Put a data set's files into the workspace, as hard links where the disk allows it."""
        kept = ("train", "val", "test") if test else ("train", "val")
        named = (*(artifacts.split_file(dataset, split) for split in kept),)
        for path in (*named, artifacts.space_file(dataset), artifacts.statistics_file(dataset)):
            if not (self.source / path).exists():
                raise ArtifactError(f"{path} is missing: {artifacts.remake('prepare', dataset)}")
            place(self.source / path, self.folder / path)
        self.link(Path("src"))  # its digest tells tracking whether work is the same

    def link(self, folder: Path) -> None:
        """Let a folder of the repository's be seen in the workspace too."""
        place, target = self.folder / folder, self.source / folder
        if not place.is_symlink():
            place.parent.mkdir(parents=True, exist_ok=True)
            place.symlink_to(os.path.relpath(target.resolve(), place.parent.resolve()))  # holds in a repository that is moved

    @contextmanager
    def entered(self) -> Iterator[None]:
        """This process works inside; the tracking store and caches stay the repository's."""
        before, root = Path.cwd(), os.environ.get("DVC_ROOT")
        os.environ["DVC_ROOT"] = str(runtime.workspace())
        os.chdir(self.folder)
        try:
            yield
        finally:
            os.chdir(before)
            if root is None:
                del os.environ["DVC_ROOT"]
            else:
                os.environ["DVC_ROOT"] = root


def place(source: Path, target: Path) -> None:
    """The same file at another path, whole or not at all; what is there already stays."""
    if target.exists():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source.resolve(), target)
    except FileExistsError:  # another process was faster
        return
    except OSError:  # another disk
        files.write_atomically(target, lambda file: _copy(source, file))


def _copy(source: Path, target: Path) -> None:
    shutil.copyfile(source, target)


def digest(value: Any) -> str:
    """Short name of a JSON value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:12]


def build(params: Params, base: str, changes: Changes, protocol: Protocol) -> Variant:
    """The run `base` with changes; raises ParamsError where these break a rule."""
    run = params.runs[base]
    seed = params.seed if changes.seed is None else changes.seed
    network = params.networks[run.network].model_dump()
    lender, own_experts = params.matched(base)
    expert_settings = {**own_experts.model_dump(), **changes.experts}
    settings = {**params.distillations[base].model_dump(), **changes.distill}
    settings["snapshot_every"] = max(1, math.ceil(settings["iterations"] / params.tune.rungs))
    buffer = f"{lender[:SHOWN]}-{digest([seed, network, expert_settings])}"
    name = f"{base[:SHOWN]}-{digest([seed, network, buffer, run.ipc, settings])}"
    shared = {"dataset": run.dataset, "network": run.network}
    raw = {
        "seed": seed,
        "runtime": params.runtime.model_dump(),
        "prepare": {run.dataset: params.prepare[run.dataset].model_dump()},
        "networks": {run.network: network},
        "experts": {buffer: expert_settings},
        "distill": {run.distill.method: settings},
        "evaluate": {PROTOCOL: protocol.model_dump()},
        "tune": params.tune.model_dump(exclude={"ranges"}),
        "runs": {
            name: {**shared, "experts": buffer, "ipc": run.ipc, "distill": {"method": run.distill.method}, "evaluate": PROTOCOL}
        },
    }
    parsed = replace(parse(raw, f"a variant of {base}"), split_seed=params.seed)
    return Variant(parsed, name, lender)


def with_runtime(variant: Variant, asked: Runtime) -> Variant:
    """The same variant, with another share of the machine."""
    return replace(variant, params=replace(variant.params, runtime=asked))


def protocol_of(params: Params, base: str) -> Protocol:
    """How students of variants are trained: as the run's, but for the settings in `tune`; never chosen on the test split."""
    own, tune = params.evaluate[params.runs[base].evaluate], params.tune
    return own.model_copy(update={"students": tune.students, "epochs": tune.epochs or own.epochs, "score": "last"})


# -- inside a workspace


def ready_experts(variant: Variant, source: Path) -> None:
    """The variant's experts, borrowed from the pipeline where it has the same, else trained, by one process alone."""
    params, name = variant.params, variant.experts
    lock = Path(".locks", f"{name}.lock")
    lock.parent.mkdir(exist_ok=True)
    with FileLock(lock):
        record, count = experts_record(params, name), params.experts[name].count
        try:
            return artifacts.check_trajectories(name, count, record)
        except ArtifactError:
            pass
        try:
            _borrow(variant, source, count)
            artifacts.check_trajectories(name, count, record)
        except ArtifactError:
            shutil.rmtree(artifacts.trajectories_folder(name), ignore_errors=True)
            experts.run(params, name)


def _borrow(variant: Variant, source: Path, count: int) -> None:
    """Link the pipeline's experts, if they were made by the same settings from the same images."""
    record, lender = experts_record(variant.params, variant.experts), variant.lender
    lent = [source / artifacts.trajectory_file(lender, index) for index in range(count)]
    for index, path in enumerate(lent):
        numbered = replace(record, kind=artifacts.trajectory_kind(index))
        artifacts.check_record(path, numbered, artifacts.remake("experts", lender))
    for index, path in enumerate(lent):
        place(path, artifacts.trajectory_file(variant.experts, index))


def make(variant: Variant, tracker: Tracker, judge: Judge | None = None, splits: tuple[str, ...] = ("val",)) -> Accuracies:
    """Distil the variant, whose experts are ready, and train fresh students on it; what was finished before is not done again.

    At the rungs before the end `judge` is told the accuracy of a few students.
    """
    found = finished(variant, splits)
    if found is not None:
        return found
    protocol, tune = variant.params.evaluate[PROTOCOL], variant.params.tune
    start, total = time.perf_counter(), variant.params.distillations[variant.name].iterations

    def watch(iteration: int, synthetic: SyntheticSet) -> None:
        if judge is not None and 0 < iteration < total:
            mean, _ = scores.mean_and_std(score(variant, synthetic, tune.rung_students, ("val",))["val"])
            tracker.metrics({"rung_accuracy": mean}, iteration)
            judge(iteration, mean)

    with tracking.joined(tracker):
        _distil(variant, watch)
    accuracies = score(variant, artifacts.load_synthetic(variant.name), protocol.students, splits)
    spent = time.perf_counter() - start
    files.write_json(_result(variant, splits), {"accuracies": accuracies, "seconds": spent})
    return accuracies


def finished(variant: Variant, splits: tuple[str, ...], folder: Path = Path()) -> Accuracies | None:
    """What `make` found earlier, by whatever process, in this workspace's folder."""
    path = folder / _result(variant, splits)
    if not path.exists():
        return None
    found = files.read_json(path, f"delete {path}, and it is made again")
    return {split: tuple(accuracies) for split, accuracies in found["accuracies"].items()}


def _result(variant: Variant, splits: tuple[str, ...]) -> Path:
    protocol = variant.params.evaluate[PROTOCOL].model_dump()
    return Path("results", f"{variant.name}-{digest([protocol, splits])}.json")


def _distil(variant: Variant, watch: Watch) -> None:
    """Unless a process that was killed later has done so; its partial work is kept only where it was asked to stop."""
    params, name = variant.params, variant.name
    try:
        artifacts.check_record(artifacts.synthetic_file(name), synthetic_settings(params, name), "")
    except ArtifactError:
        try:
            distill.run(params, name, watch)
        except InterruptedWorkError:
            raise
        except Exception:
            checkpoints.forget("distill", name)
            raise
        checkpoints.forget("distill", name)  # another number of iterations is another variant


def score(variant: Variant, synthetic: SyntheticSet, students: int, splits: tuple[str, ...]) -> Accuracies:
    """Accuracies of fresh students; others than those that `evaluate` will train, so that no choice rests on these."""
    params, name = variant.params, variant.name
    run, protocol = params.runs[name], params.evaluate[PROTOCOL].model_copy(update={"students": students})
    asked = replace(params, seed=seed_of(params.seed, PROTOCOL), evaluate={PROTOCOL: protocol})
    device, statistics = runtime.start(params.runtime), artifacts.load_statistics(run.dataset)
    predicted, _ = evaluate.predict_all(asked, name, run.network, synthetic, statistics, device, splits=splits)
    evaluate.forget(name, [run.network])
    labels = {split: artifacts.load_split(run.dataset, split).labels for split in splits}
    return {split: tuple(scores.accuracy(classes, labels[split]) for classes in predicted[split]) for split in splits}
