"""tune: a search for the parameters of a run whose images or tuples teach best, judged on the validation split alone.

No stage of the pipeline: it proposes parameters, and `--apply` adds them to params.yaml as a run of their own.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from multiprocessing.process import BaseProcess
from pathlib import Path

import optuna
from optuna.distributions import distribution_to_json

from src.ground import host
from src.ground.errors import UserError
from src.process import cluster, progress
from src.process.cluster import Cluster
from src.settings import resolved, runs
from src.settings.params import Params
from src.settings.resolved import Run
from src.settings.runtime import Runtime
from src.settings.studies import Tune
from src.stages.records import synthetic_settings
from src.store import files
from src.store.store import Store
from src.studies import findings, processes, space, study, trials, variants
from src.studies.space import Side
from src.studies.study import Study
from src.studies.trials import Task
from src.studies.variants import Changes, Workspace
from src.tracking import tracker as tracking
from src.tracking.tracker import Nest, Tracker

POLL_SECONDS = 0.5
RESTARTS = 3  # of each worker, after kills


def run(
    store: Store,
    params: Params,
    name: str,
    side: Side,
    trials_wanted: int | None,
    timeout: float | None,
    workers: int | None,
    apply: bool,
) -> None:
    """Search until the study has so many trials, say what was found, and apply it if asked to."""  # fmt: skip
    base, tune = resolved.run(params, name), params.tune
    wanted = tune.trials if trials_wanted is None else trials_wanted
    plan = plan_of(store, base, tune, side)
    if wanted:
        workspace = Workspace(plan.folder, Path.cwd())
        search(base, tune, side, plan, workspace, wanted, timeout, processes.count(base.runtime, workers))
    opened = plan.open()
    findings.show(opened, plan)
    if apply:
        findings.apply(opened, params, name)


def choose(params: Params, dataset: str | None, ipc: int | None, base: str | None) -> str:
    """The run to start from: the one that is named, or the first that is distilled from this data set to so many."""
    if dataset is not None:
        params.dataset(dataset)
    if base is not None:
        return _fitting(params, params.run(base), base, dataset, ipc)
    if dataset is None or ipc is None:
        raise UserError(
            "tune what? Name a run with --run, or a data set and a number of images per class with --dataset and --ipc"
        )
    for name, run in params.runs.items():
        if (run.dataset, run.ipc) == (dataset, ipc) and params.distillations[name].iterations > 0:
            return name
    noun = "images per class" if params.prepare[dataset].modalities is None else "tuples"
    raise UserError(f"no run of params.yaml distils {dataset} to {ipc} {noun}: add one to start from")


def _fitting(params: Params, run: runs.Run, base: str, dataset: str | None, ipc: int | None) -> str:
    for field, asked in (("dataset", dataset), ("ipc", ipc)):
        if asked is not None and getattr(run, field) != asked:
            raise UserError(
                f"runs.{base}.{field} is {getattr(run, field)}, not {asked}: leave --{field} out, or name another --run"
            )
    if not params.distillations[base].iterations:
        raise UserError(f"runs.{base} has 0 iterations: there is nothing to tune in it; name a run that is distilled")
    return base


def plan_of(store: Store, base: Run, tune: Tune, side: Side) -> Study:
    """The study of a run; other settings or images are another study, as what their students reach can't be compared."""
    dataset, searched = base.dataset.name, space.build(base, tune, side)
    store.load_statistics(dataset)
    meaning = [
        base.seed, side, base.distillation.model_dump(), None if base.buffer is None else base.buffer.settings.model_dump(),
        base.spec.model_dump(), variants.protocol_of(base, tune).model_dump(),
        tune.model_dump(exclude={"ranges", "trials", "storage"}), variants.numbers_of(base.runtime),
        [distribution_to_json(one) for one in searched.values()],
        [files.digest(store.split_file(dataset, split)) for split in ("train", "val")],
        *([] if base.initial is None else [synthetic_settings(base.initial).plain()]),
    ]  # fmt: skip
    name = f"{dataset}-ipc{base.ipc}-{base.network}-{side}-{variants.digest(meaning)}"
    tidy = functools.partial(space.tidy, base, searched)
    folder = host.workspace() / "data" / "tune" / name
    return Study(folder, name, searched, tidy, base.seed, tune.rungs > 1, tune.storage, base.dataset.headline)


def search(
    base: Run,
    tune: Tune,
    side: Side,
    plan: Study,
    workspace: Workspace,
    wanted: int,
    timeout: float | None,
    workers: int,
) -> None:
    """Work on the study in processes, whose variants are made in the workspace, and keep its MLflow run."""
    deadline = time.time() + timeout if timeout is not None else None
    plan.folder.mkdir(parents=True, exist_ok=True)
    workspace.lend(base.dataset.name)
    plan.begin(space.start(base, tune, side))
    opened, experiment = plan.open(), f"{base.dataset.name}-studies"
    left = wanted - len(study.finished(opened))
    with tracking.track(experiment, f"tune {base.name}", "study", {"optuna.study": plan.name}) as tracker:
        findings.describe(tracker, base, tune, side, plan)
        nest = Nest(experiment, tracker.opening)
        if side == "student" and left > 0:
            _ready_experts(base, tune, workspace, nest)
        shared = replace(base, runtime=processes.share(base.runtime, min(workers, left)))
        task = Task(shared, tune, plan, workspace, nest, wanted, deadline)
        _work(task, base.runtime, opened, min(workers, left), tracker)
        if not opened.get_trials(deepcopy=False, states=(optuna.trial.TrialState.RUNNING,)):
            tracker.end_children()
        findings.log(opened, tracker, plan)
    if len(study.finished(opened)) < wanted and (deadline is None or time.time() < deadline):
        progress.say(f"{plan.name}: {len(study.finished(opened))} of {wanted} trials: see {plan.folder / 'logs'}")


def _ready_experts(base: Run, tune: Tune, workspace: Workspace, nest: Nest) -> None:
    """The experts that all trials match, made once with the whole machine."""
    variant = variants.build(base, tune, Changes(), variants.protocol_of(base, tune))
    with processes.pool(1) as pool:
        pool.submit("experts", trials.ready, variant, workspace, nest).result()


def _work(task: Task, asked: Runtime, opened: optuna.Study, workers: int, tracker: Tracker) -> None:
    """Run workers until none has anything left to do; those that are killed are replaced."""
    told, title = len(study.finished(opened)), f"tune {task.base.name}"
    kept = _processes(task, workers) if cluster.address(asked) is None else _tasks(task, asked, workers, title)
    with progress.progress(title, max(task.trials - told, 0)) as advance, kept as alive:
        while alive():
            time.sleep(POLL_SECONDS)
            told = findings.tell_new(opened, told, tracker, advance, task.study.headline)
        findings.tell_new(opened, told, tracker, advance, task.study.headline)


@contextmanager
def _processes(task: Task, workers: int) -> Iterator[Callable[[], bool]]:
    """Yields alive(): whether a worker is, after killed ones have been replaced."""
    try:
        found = [_start(task, number) for number in range(workers)]
        yield functools.partial(_alive, task, found, [0] * workers)
    finally:  # of Ctrl-C, too: trials that are cut off are gone on with later
        processes.end()


@contextmanager
def _tasks(task: Task, asked: Runtime, workers: int, title: str) -> Iterator[Callable[[], bool]]:
    """As `_processes`, of a cluster, which replaces those that are lost; a study is in a folder that all of them see."""
    if asked.depot is not None:
        raise UserError(
            "tune works on one study in data/tune, which all machines must see: run it where they share this folder, without "
            "runtime.depot"
        )
    with Cluster(asked, title) as found:
        jobs = [found.submit(title, trials.work, task, _log(task, number)) for number in range(workers)]
        yield lambda: [job.result() for job in jobs if job.done()].count(None) < len(jobs)


def _log(task: Task, number: int) -> Path:
    return task.study.folder / "logs" / f"worker-{number}.txt"


def _start(task: Task, number: int) -> BaseProcess:
    process = processes.CONTEXT.Process(target=trials.work, args=(task, _log(task, number)))
    process.start()
    return process


def _alive(task: Task, found: list[BaseProcess], restarts: list[int]) -> bool:
    for number, process in enumerate(found):
        if (process.exitcode or 0) < 0 and restarts[number] < RESTARTS:
            progress.say(f"worker {number} was killed by signal {-(process.exitcode or 0)}; another one takes its trial over")
            restarts[number] += 1
            found[number] = _start(task, number)
    return any(process.is_alive() for process in found)
