"""Runs repeated over seeds: variants of each seed, made side by side, and what their students reached.

Every seed has experts, draws and students of its own; variants of one seed share the experts that they have in common. What is
finished is kept by its content, so that the same command goes on after whatever ended it.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, as_completed
from dataclasses import replace
from pathlib import Path
from statistics import mean

from src.ground import host
from src.ground.errors import UserError
from src.maths import scores
from src.process import progress
from src.process.progress import Advance
from src.settings.protocols import Protocol
from src.settings.resolved import Run
from src.settings.runtime import Runtime
from src.settings.studies import Tune
from src.store import busy, files
from src.store.store import Store
from src.studies import processes, trials, variants
from src.studies.processes import Pool
from src.studies.variants import Accuracies, Changes, Variant, Workspace
from src.tracking import tracker as tracking
from src.tracking.tracker import Nest

Line = tuple[Variant, ...]  # a variant, the last one, after those whose synthetic sets it begins with, the first one first
Problems = Mapping[str, str]  # what kept a variant from being made, by its name


def workspace(store: Store, study: str, name: str, dataset: str) -> Workspace:
    """The folder data/STUDY/NAME-DIGEST, of the images that are there now. Raises ArtifactError where there are none."""
    store.load_statistics(dataset)  # says what to do where the data set is not prepared
    images = [files.digest(store.split_file(dataset, split)) for split in ("train", "val")]
    found = Workspace(host.workspace() / "data" / study / f"{name}-{variants.digest(images)}", Path.cwd())
    found.lend(dataset)
    return found


def check_seeds(base: Run) -> None:
    """Raises UserError where the run's experts can't be trained anew under other seeds."""
    for one in (base, *base.initials):
        if one.buffer is not None and one.buffer.settings.imported is not None:
            raise UserError(
                f"runs.{one.name} has the imported experts '{one.buffer.name}', which no other seed can train again: "
                "name a run whose experts are trained here"
            )


def line(base: Run, tune: Tune, changes: Mapping[str, Changes], root: int, protocol: Protocol) -> Line:
    """The run's variant of a seed. Where it begins with another run's set, it begins with that run's variant of this seed.

    `changes` are by the run's name, and of no run that is not there.
    """
    before = () if base.initial is None else line(base.initial, tune, changes, root, protocol)
    begun = variants.beginning_with(base, before[-1].run) if before else base
    return (*before, variants.build(begun, tune, replace(changes.get(base.name, Changes()), seed=root), protocol))


def make(
    study: str,
    lent: Runtime,
    wanted: Mapping[str, Sequence[Line]],
    workspace: Workspace,
    nest: Nest,
    splits: tuple[str, ...],
    workers: int,
) -> Problems:
    """Make what is missing of `wanted`, each seed's line by a label, side by side: experts first, each set once.

    Raises UserError, when all else is made, where another process is at something of it.
    """
    lines = [(label, number, one) for label, own in wanted.items() for number, one in enumerate(own)]
    labels = {first.name: (first, f"for {label}, seed {n}") for label, n, one in lines for first in one[:-1]}
    labels |= {one[-1].name: (one[-1], f"{label}, seed {n}") for label, n, one in lines}
    labels = {name: one for name, one in labels.items() if variants.finished(one[0], splits, workspace.folder) is None}
    if not labels:
        return {}
    workers = min(workers, len(labels))
    asked = processes.share(lent, workers)
    labels = {name: (variants.with_runtime(variant, asked), label) for name, (variant, label) in labels.items()}
    problems: dict[str, str] = {}
    log = workspace.folder / "log.txt"
    with processes.side_by_side(lent, workers, log, study) as pool, progress.progress(study, len(labels)) as advance:
        alone = functools.partial(_make, workspace=workspace, nest=nest, splits=splits)
        for depth in sorted({len(variant.run.initials) for variant, _ in labels.values()}):
            now = {name: one for name, one in labels.items() if len(one[0].run.initials) == depth}
            lost = {name: problems.get(one.run.initials[0].name, "") if depth else "" for name, (one, _) in now.items()}
            problems |= {name: f"what it begins with failed: {problem}" for name, problem in lost.items() if problem}
            now = {name: one for name, one in now.items() if name not in problems}
            problems |= _ready(pool, [variant for variant, _ in now.values()], workspace, nest)
            now = {name: one for name, one in now.items() if name not in problems}
            jobs = {
                pool.submit(f"{study} {label}", alone, variant, label, inputs=variants.files_of(variant, workspace)): name
                for name, (variant, label) in now.items()
            }
            problems |= _ended(jobs, {name: label for name, (_, label) in now.items()}, advance)
    in_use = next((problem for problem in problems.values() if busy.BUSY in problem), None)
    if in_use is not None:
        raise UserError(f"{in_use}; the same command then goes on, and takes it from there")
    return problems


def _ready(pool: Pool, made: Sequence[Variant], workspace: Workspace, nest: Nest) -> Problems:
    """Make the experts of variants, each set once; the variants whose experts could not be made."""
    matched = [variant for variant in made if variant.run.buffer is not None]
    buffers = {variant.experts: variant for variant in matched}
    jobs = {
        name: pool.submit(f"experts {name}", trials.ready, one, workspace, nest, inputs=variants.files_of(one, workspace))
        for name, one in buffers.items()
    }
    lost = {}
    for name, job in jobs.items():
        try:
            job.result()
        except UserError as error:
            lost[name] = str(error)
    return {variant.name: lost[variant.experts] for variant in matched if variant.experts in lost}


def _ended(jobs: Mapping[Future[str], str], labels: Mapping[str, str], advance: Advance) -> Problems:
    problems = {}
    for job in as_completed(jobs):
        problems[jobs[job]] = job.result()
        advance(labels[jobs[job]])
    return {name: problem for name, problem in problems.items() if problem}


def _make(variant: Variant, label: str, workspace: Workspace, nest: Nest, splits: tuple[str, ...]) -> str:
    """Make one variant, as a process of its own; what kept it from being made, or nothing."""
    find = {"ast.variant": variant.name}
    try:
        with (
            processes.told_to_stop(),
            workspace.entered(),
            tracking.nested(nest),
            tracking.track(nest.experiment, label, "variant", find) as tracker,
        ):
            found = variants.make(variant, tracker, splits=splits)
            for split, accuracies in found.items():
                (score, std), name = scores.mean_and_std(accuracies), f"{split}_{variant.run.dataset.headline}"
                tracker.metrics({f"{name}_mean": score, f"{name}_std": std})
    except UserError as error:
        return str(error)
    return ""


def means(own: Sequence[Line], splits: tuple[str, ...]) -> dict[str, tuple[float, ...]]:
    """By split the mean over the students of each seed, inside the workspace; nothing where a seed is not there.

    Seeds are independent, the students of one synthetic set are not.
    """
    made: list[Accuracies | None] = [variants.finished(one[-1], splits) for one in own]
    if any(one is None for one in made):
        return {}
    return {split: tuple(mean(one[split]) for one in made if one is not None) for split in splits}


def problem(own: Sequence[Line], problems: Problems) -> str:
    """What kept the first of these that was not made from being so."""
    return next((problems[one[-1].name] for one in own if one[-1].name in problems), "")
