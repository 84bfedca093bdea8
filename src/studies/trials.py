"""A worker of a study: takes trials, makes each one's variant, and tells what became of it, until there is nothing left."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import optuna
from optuna.trial import Trial

from src.ground.errors import InterruptedWorkError
from src.maths import scores
from src.process import progress
from src.settings.resolved import Run
from src.settings.studies import Tune
from src.studies import processes, space, study, usefulness, variants
from src.studies.study import Study
from src.studies.variants import Variant, Workspace
from src.tracking import tracker as tracking
from src.tracking.tracker import Nest, Tracker


@dataclass(frozen=True)
class Task:
    """What every worker of a study is told."""

    base: Run  # that trials change, with a worker's share of the machine
    tune: Tune
    study: Study
    workspace: Workspace
    nest: Nest
    trials: int  # of the study in all
    deadline: float | None  # time.time() after which no trial begins


def ready(variant: Variant, workspace: Workspace, nest: Nest) -> None:
    """Make the experts that all trials share, as a process of its own."""
    with processes.told_to_stop(), workspace.entered(), tracking.nested(nest):
        try:
            variants.ready_experts(variant, workspace.source)
        finally:
            processes.let_go()


def work(task: Task, log: Path) -> None:
    """A worker, as a process of its own whose output goes to a file."""
    processes.begin(log)
    with processes.told_to_stop(), task.workspace.entered(), tracking.nested(task.nest), task.study.worker() as name:
        opened = task.study.open()
        while task.deadline is None or time.time() < task.deadline:
            trial = task.study.claim(opened, name, task.trials)
            if trial is None:
                return
            one(task, opened, trial)


def one(task: Task, opened: optuna.Study, trial: Trial) -> None:
    """Work on one trial to its end, whatever that is."""
    find = {"optuna.study": task.study.name, "optuna.trial": str(trial.number)}
    try:
        with tracking.track(task.nest.experiment, f"trial-{trial.number:03d}", "trial", find) as tracker, _timed(trial):
            accuracies = _attempt(task, opened, trial, tracker)
    except InterruptedWorkError:  # it is taken up again
        raise
    except Exception as error:  # of any kind: the study goes on, and keeps the reason
        sentence = " ".join(str(error).split()) or repr(error)
        progress.say(f"trial {trial.number} failed: {sentence}")
        study.fail(opened, trial, sentence)
    else:
        if accuracies is None:
            study.prune(opened, trial)
        else:
            study.complete(opened, trial, accuracies)


@contextmanager
def _timed(trial: Trial) -> Iterator[None]:
    """Add to the trial's seconds at work: Optuna's own duration has what lies between a kill and the next command too."""
    start, before = time.monotonic(), trial.user_attrs.get("seconds", 0.0)
    try:
        yield
    finally:
        trial.set_user_attr("seconds", before + time.monotonic() - start)


def _attempt(task: Task, opened: optuna.Study, trial: Trial, tracker: Tracker) -> tuple[float, ...] | None:
    """The accuracies of the finished variant's students; None where the trial is given up."""

    def judge(iteration: int, accuracy: float) -> None:
        if study.report(opened, trial, iteration, accuracy):
            raise optuna.TrialPruned(f"at iteration {iteration}")

    try:
        changes, protocol = space.changes(trial.params), variants.protocol_of(task.base, task.tune)
        variant = variants.build(task.base, task.tune, changes, protocol)
        trial.set_user_attr("variant", variant.name)
        variants.ready_experts(variant, task.workspace.source)
        if changes.experts:
            measured = usefulness.measure(variant)
            trial.set_user_attr("experts", asdict(measured))
            known = {name: value for name, value in asdict(measured).items() if value is not None}
            tracker.metrics({f"experts/{name}": value for name, value in known.items()})
        accuracies = variants.make(variant, tracker, judge)["val"]
    except InterruptedWorkError:
        raise
    except optuna.TrialPruned as pruned:
        tracker.tags({"optuna.state": "PRUNED", "optuna.sentence": str(pruned)})
        return None
    except Exception as error:
        tracker.tags({"optuna.state": "FAIL", "optuna.sentence": str(error)})
        raise
    mean, std = scores.mean_and_std(accuracies)
    name = f"val_{task.base.dataset.headline}"
    tracker.metrics({f"{name}_mean": mean, f"{name}_std": std})
    tracker.tags({"optuna.state": "COMPLETE"})
    return accuracies
