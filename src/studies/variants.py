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

from src.ground import host, runtime
from src.ground.errors import ArtifactError, InterruptedWorkError
from src.ground.seeding import seed_of
from src.maths import scores
from src.process import depot
from src.settings import resolved
from src.settings.params import parse
from src.settings.protocols import Protocol
from src.settings.resolved import Run
from src.settings.runtime import Runtime
from src.settings.studies import Tune
from src.stages import distill, evaluate, experts
from src.stages.distill import Watch
from src.stages.records import check_synthetic, experts_record, synthetic_settings
from src.stages.resolve import IN_BYTES
from src.store import checkpoints, cost, files, tensors, values
from src.store.store import Store, remake
from src.store.values import SyntheticSet
from src.tracking import tracker as tracking
from src.tracking.tracker import Tracker

SHOWN = 50  # characters of a run's name in its variants': with a digest behind them they are a name still
PROTOCOL = "study"  # the name of the evaluation protocol in a variant's parameters

Accuracies = Mapping[str, tuple[float, ...]]  # split -> accuracy of each student, of tuples the mean recall
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
    """A run of its own; both it and its experts are named by their content."""

    run: Run
    tune: Tune
    lender: str  # the pipeline's experts, which are taken where they are the same; of a run without any, nothing

    @property
    def name(self) -> str:
        return self.run.name

    @property
    def experts(self) -> str:
        """The name of a run's that has any."""
        return self.run.experts.name


@dataclass(frozen=True)
class Workspace:
    """A folder to make variants in, and the repository's top that it borrows from; both absolute."""

    folder: Path
    source: Path

    def lend(self, dataset: str, test: bool = False) -> None:
        """Put a data set's files into the workspace, as hard links where the disk allows it, and show it the imported sets."""
        kept = ("train", "val", "test") if test else ("train", "val")
        store = Store()
        named = (*(store.split_file(dataset, split) for split in kept),)
        for path in (*named, store.space_file(dataset), store.statistics_file(dataset)):
            if not (self.source / path).exists():
                raise ArtifactError(f"{path} is missing: {remake('prepare', dataset)}")
            place(self.source / path, self.folder / path)
        imported = store.imported_file("any").parent  # sets that runs of these images may begin with
        if (self.source / imported).is_dir():
            self.link(imported)

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
        os.environ["DVC_ROOT"] = str(host.workspace())
        os.chdir(depot.seen(self.folder))
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


def build(base: Run, tune: Tune, changes: Changes, protocol: Protocol) -> Variant:
    """The run `base` with changes; raises ParamsError where these break a rule."""
    dataset, method = base.dataset.name, base.method
    seed = base.seed if changes.seed is None else changes.seed
    network, lender = base.spec.model_dump(), "" if base.buffer is None else base.buffer.name
    numbers = numbers_of(base.runtime)
    trained: dict[str, Any] = {}
    if base.buffer is not None:
        settings_of_experts = {**base.buffer.settings.model_dump(), **changes.experts}
        trained = {f"{lender[:SHOWN]}-{digest([seed, network, settings_of_experts, numbers])}": settings_of_experts}
    settings = {**base.distillation.model_dump(), **changes.distill}
    settings["snapshot_every"] = max(1, math.ceil(settings["iterations"] / tune.rungs))
    buffer = next(iter(trained), None)
    begun = [] if base.initial is None else [synthetic_settings(base.initial).plain()]
    name = f"{base.name[:SHOWN]}-{digest([seed, network, buffer, base.ipc, settings, numbers, *begun])}"
    own = {"dataset": dataset, "network": base.network, "experts": buffer, "ipc": base.ipc, "evaluate": PROTOCOL}
    raw: dict[str, Any] = {
        "seed": seed,
        "runtime": base.runtime.model_dump(),
        "prepare": {dataset: base.dataset.settings.model_dump()},
        "networks": {base.network: network},
        "experts": trained,
        "distill": {method: settings},
        "evaluate": {PROTOCOL: protocol.model_dump()},
        "runs": {name: {**own, "distill": {"method": method}}},
    }
    if base.initial is not None:  # for checking alone: the run itself takes its place
        begins = {"initialisation": "noise", "initial_run": None, "lr_init": settings["syn_lr_min"]}
        raw["runs"][base.initial.name] = {**own, "distill": {"method": method, **begins}}
    parsed = replace(parse(raw, f"a variant of {base.name}"), split_seed=base.dataset.seed)
    return Variant(replace(resolved.run(parsed, name), initial=base.initial), tune, lender)


def numbers_of(asked: Runtime) -> dict[str, Any]:
    """What of the machine the numbers rest on, but for threads, of which variants side by side get shares."""
    return asked.model_dump(include=IN_BYTES - {"threads"})


def beginning_with(base: Run, initial: Run) -> Run:
    """The run, beginning with the synthetic set of another one than it names, such as a variant of that."""
    distillation = base.distillation.model_copy(update={"initial_run": initial.name})
    return replace(base, initial=initial, distillation=distillation)


def with_runtime(variant: Variant, asked: Runtime) -> Variant:
    """The same variant, with another share of the machine."""
    run = variant.run
    buffer = None if run.buffer is None else replace(run.buffer, runtime=asked)
    return replace(variant, run=replace(run, runtime=asked, buffer=buffer))


def protocol_of(base: Run, tune: Tune) -> Protocol:
    """How students of variants are trained: as the run's, but for the settings in `tune`; never chosen on the test split."""
    own = base.evaluation
    return own.model_copy(update={"students": tune.students, "epochs": tune.epochs or own.epochs, "score": "last"})


def files_of(variant: Variant, workspace: Workspace) -> list[Path]:
    """What the making of a variant reads, as far as it is there: images, experts of its own or lent, the set it begins with."""
    store, initial = Store(), variant.run.initial
    wanted = [store.dataset_folder(variant.run.dataset.name)]
    if variant.run.buffer is not None:
        wanted += [store.trajectories_folder(variant.experts), store.trajectories_folder(variant.lender)]
    if initial is not None:
        wanted.append(store.synthetic_file(initial.name).parent)
    tops = (workspace.folder, workspace.source)
    return [path for top in tops for folder in wanted for path in (top / folder).rglob("*") if path.is_file()]


# -- inside a workspace


def ready_experts(variant: Variant, source: Path) -> None:
    """The variant's experts, borrowed from the pipeline where it has the same, else trained, by one process alone.

    The set that it begins with is one made in this workspace, or else the pipeline's.
    """
    store, buffer, initial, source = Store(), variant.run.buffer, variant.run.initial, depot.seen(source)
    if initial is not None:
        path = store.synthetic_file(initial.name)
        try:
            check_synthetic(store, initial)
        except ArtifactError:
            check_synthetic(store, initial, path=source / path)
            place(source / path, path)
    if buffer is None:
        return None
    name, count = buffer.name, buffer.settings.count
    lock = Path(".locks", f"{name}.lock")
    lock.parent.mkdir(exist_ok=True)
    with FileLock(lock):
        record = experts_record(store, buffer)
        try:
            return store.check_trajectories(name, count, record)
        except ArtifactError:
            pass
        try:
            _borrow(variant, source, count)
            store.check_trajectories(name, count, record)
        except ArtifactError:
            shutil.rmtree(store.trajectories_folder(name), ignore_errors=True)
            experts.run(store, buffer)


def _borrow(variant: Variant, source: Path, count: int) -> None:
    """Link the pipeline's experts, if they were made by the same settings from the same images."""
    store, lender = Store(), variant.lender
    record = experts_record(store, variant.run.experts)
    lent = [source / store.trajectory_file(lender, index) for index in range(count)]
    for index, path in enumerate(lent):
        numbered = replace(record, kind=values.trajectory_kind(index))
        tensors.check_record(path, numbered, remake("experts", lender))
    for index, path in enumerate(lent):
        place(path, store.trajectory_file(variant.experts, index))


def make(variant: Variant, tracker: Tracker, judge: Judge | None = None, splits: tuple[str, ...] = ("val",)) -> Accuracies:
    """Distil the variant, whose experts are ready, and train fresh students on it; what was finished before is not done again.

    At the rungs before the end `judge` is told the accuracy of a few students.
    """
    found = finished(variant, splits)
    if found is not None:
        return found
    protocol, tune = variant.run.evaluation, variant.tune
    total = variant.run.distillation.iterations

    def watch(iteration: int, synthetic: SyntheticSet) -> None:
        if judge is not None and 0 < iteration < total:
            mean, _ = scores.mean_and_std(score(variant, synthetic, tune.rung_students, ("val",))["val"])
            tracker.metrics({f"rung_{variant.run.dataset.headline}": mean}, iteration)
            judge(iteration, mean)

    with tracking.joined(tracker):
        _distil(variant, watch)
    start = time.perf_counter()
    accuracies = score(variant, Store().load_synthetic(variant.name), protocol.students, splits)
    files.write_json(_result(variant, splits), {"accuracies": accuracies, "students_seconds": time.perf_counter() - start})
    return accuracies


def finished(variant: Variant, splits: tuple[str, ...], folder: Path = Path()) -> Accuracies | None:
    """What `make` found earlier, by whatever process, in this workspace's folder."""
    found = _found(folder / _result(variant, splits))
    return None if found is None else {split: tuple(accuracies) for split, accuracies in found["accuracies"].items()}


def seconds(variant: Variant, splits: tuple[str, ...]) -> float:
    """What the making of a finished variant took in this workspace: its distillation, from start to end, and its students."""
    spent, found = cost.lookup(Store().synthetic_file(variant.name)), _found(_result(variant, splits))
    students = 0.0 if found is None else float(found["students_seconds"])
    return students + (0.0 if spent is None else spent.seconds)


def _found(result: Path) -> Mapping[str, Any] | None:
    return files.read_json(result, f"delete {result}, and it is made again") if result.exists() else None


def _result(variant: Variant, splits: tuple[str, ...]) -> Path:
    protocol = variant.run.evaluation.model_dump()
    return Path("results", f"{variant.name}-{digest([protocol, splits])}.json")


def _distil(variant: Variant, watch: Watch) -> None:
    """Unless a process that was killed later has done so; its partial work is kept only where it was asked to stop."""
    store, name = Store(), variant.name
    try:
        check_synthetic(store, variant.run)
    except ArtifactError:
        try:
            distill.run(store, variant.run, watch)
        except InterruptedWorkError:
            raise
        except Exception:
            checkpoints.forget("distill", name)
            raise
        checkpoints.forget("distill", name)  # another number of iterations is another variant


def score(variant: Variant, synthetic: SyntheticSet, students: int, splits: tuple[str, ...]) -> Accuracies:
    """What fresh students reach; others than those that `evaluate` will train, so that no choice rests on these."""
    store, run = Store(), variant.run
    protocol = run.evaluation.model_copy(update={"students": students})
    asked = replace(run, seed=seed_of(run.seed, PROTOCOL), evaluation=protocol)
    dataset, network = run.dataset.name, (run.network, run.spec)
    device, statistics = runtime.start(run.runtime), store.load_statistics(dataset)
    measured, _, work = evaluate.predict_all(store, asked, network, synthetic, statistics, device, splits=splits)
    work.forget()
    task, labels = evaluate.task_of(asked, statistics), {split: store.load_labels(dataset, split) for split in splits}
    return {split: tuple(task.figures(one, labels[split])[task.headline] for one in measured[split]) for split in splits}
