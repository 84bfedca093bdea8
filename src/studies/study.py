"""An Optuna study that any number of processes work on, and that no kill can harm.

Trials lie in an Optuna journal, which optuna-dashboard opens, or in a database. Taking a trial happens under a lock: trials of
workers that are gone are taken first, and gone on with, under their own number and parameters, once where the worker died; a
new one is drawn on a copy of the study, as often as its parameters have been tried before. So there are exactly as many trials
as asked for, and no two are the same.
"""

from __future__ import annotations

import uuid
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import optuna
from filelock import FileLock, Timeout
from optuna.exceptions import ExperimentalWarning
from optuna.pruners import MedianPruner, NopPruner
from optuna.samplers import RandomSampler, TPESampler
from optuna.storages import BaseStorage, GrpcStorageProxy, JournalStorage, RDBStorage
from optuna.trial import FrozenTrial, Trial, TrialState

from src.ground.errors import UserError
from src.ground.seeding import seed_of
from src.studies.space import Space
from src.studies.study_log import StudyLog

DRAWS = 100  # of parameters that are all known already, before the search space counts as exhausted
GRPC_PORT = 13000  # Optuna's own
CONNECT_SECONDS = 30
DEATHS = 2  # of workers at one trial, which fails then: it is tried again once
WORKERS = "workers"  # the attribute of a trial that names all who took it
FINISHED = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)

Tidy = Callable[[dict[str, Any]], dict[str, Any]]

optuna.logging.set_verbosity(optuna.logging.WARNING)


@dataclass(frozen=True)
class Study:
    """A study by its folder and name; what it searches, and how its drawn values are tidied."""

    folder: Path
    name: str
    space: Space
    tidy: Tidy
    seed: int
    prunes: bool
    url: str | None = None  # of a database or proxy that holds it; None is a journal in its folder
    headline: str = "accuracy"  # what students are judged by, as metrics name it

    def open(self) -> optuna.Study:
        """The study as it is now; made where it is not there.

        Raises ArtifactError where its file is damaged, and UserError where its database does not answer.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with self._lock():
            return optuna.create_study(
                storage=self._storage(),
                study_name=self.name,
                direction="maximize",
                load_if_exists=True,
                sampler=RandomSampler(0),  # parameters are drawn by `_draw` alone
                pruner=MedianPruner(n_startup_trials=4) if self.prunes else NopPruner(),
            )

    def _storage(self) -> BaseStorage:
        if self.url is None:
            return JournalStorage(StudyLog(self.folder))
        try:
            parts = urlsplit(self.url)
            if parts.scheme == "grpc":
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", ExperimentalWarning)
                    proxy = GrpcStorageProxy(host=parts.hostname or "localhost", port=parts.port or GRPC_PORT)
                proxy.wait_server_ready(timeout=CONNECT_SECONDS)
                return proxy
            return RDBStorage(self.url)  # without its heartbeats: a worker's lock tells at once whether it lives
        except Exception as error:  # a database's driver may fail in any way
            reason = str(error).strip().splitlines()[0]
            raise UserError(
                f"tune.storage {address(self.url)} can't be used ({reason}): start it, install its driver, or set null"
            ) from None

    def begin(self, values: dict[str, Any]) -> None:
        """Make these values the first trial, unless there is one."""
        study = self.open()
        with self._lock():
            if not study.get_trials(deepcopy=False):
                study.enqueue_trial(values)

    @contextmanager
    def worker(self) -> Iterator[str]:
        """The name of a worker that lives as long as the block, or as its process."""
        name = uuid.uuid4().hex[:12]
        path = self._life(name)
        path.parent.mkdir(exist_ok=True)
        try:
            with FileLock(path):
                yield name
        finally:
            path.unlink(missing_ok=True)

    def claim(self, study: optuna.Study, worker: str, trials: int) -> Trial | None:
        """A trial to work on; None where `trials` are finished or in other hands, or nothing is left to try."""
        with self._lock():
            found = self._abandoned(study)
            if found is None:
                waiting = study.get_trials(deepcopy=False, states=(TrialState.WAITING,))
                if not waiting:
                    if len(study.get_trials(deepcopy=False)) >= trials or (values := self._draw(study)) is None:
                        return None
                    study.enqueue_trial(values)
                found = study.ask(dict(self.space))
            found.set_user_attr(WORKERS, [*found.user_attrs.get(WORKERS, ()), worker])
            return found

    def _abandoned(self, study: optuna.Study) -> Trial | None:
        """A trial whose worker is gone; one at which too many died fails."""
        for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            workers = trial.user_attrs.get(WORKERS, ())
            if any(map(self.lives, workers)):
                continue
            found = Trial(study, trial._trial_id)
            for name, distribution in self.space.items():  # its process may have been killed before all were stored
                found._suggest(name, distribution)
            if sum(self._life(worker).exists() for worker in workers) < DEATHS:
                return found
            fail(study, found, f"its worker died {DEATHS} times, most often because memory ran out")
        return None

    def _draw(self, study: optuna.Study) -> dict[str, Any] | None:
        """New parameters; None where all that are drawn have been tried. The seed follows from the number of the trial."""
        trials = study.get_trials(deepcopy=False)
        known = [trial.params for trial in trials]
        for draw in range(DRAWS):
            seed = seed_of(self.seed, "tune", len(trials), draw) % 2**32
            # a space that is nearly used up is searched at random
            copy = optuna.create_study(
                direction="maximize", sampler=(TPESampler if draw < DRAWS // 5 else RandomSampler)(seed=seed)
            )
            copy.add_trials([_as_lesson(trial) for trial in trials])
            values = self.tidy(copy.ask(dict(self.space)).params)
            if values not in known:
                return values
        return None

    def lives(self, worker: str) -> bool:
        """Whether the process of this name is still there: of a killed one the kernel frees the lock, and the file stays."""
        if not self._life(worker).exists():
            return False
        try:
            with FileLock(self._life(worker), timeout=0):
                return False
        except Timeout:
            return True

    def _life(self, worker: str) -> Path:
        return self.folder / "workers" / f"{worker}.lock"

    def _lock(self) -> FileLock:
        return FileLock(self.folder / "study.lock")


def address(url: str) -> str:
    """A storage as others may read it: without user and password."""
    scheme, found, rest = url.partition("://")
    return scheme + found + rest.rpartition("@")[2]


def _as_lesson(trial: FrozenTrial) -> FrozenTrial:
    """A failed trial as the sampler should see it: it ignores failures, and would draw their like again."""
    if trial.state != TrialState.FAIL:
        return trial
    return optuna.create_trial(state=TrialState.PRUNED, params=trial.params, distributions=trial.distributions)


def report(study: optuna.Study, trial: Trial, step: int, value: float) -> bool:
    """Tell a value on the way; whether to give the trial up. A trial that was gone on with has told it already."""
    if step not in study.get_trials(deepcopy=False)[trial.number].intermediate_values:
        trial.report(value, step)
    return trial.should_prune()


def complete(study: optuna.Study, trial: Trial, accuracies: tuple[float, ...]) -> None:
    """The trial's value is the mean of its students."""
    trial.set_user_attr("accuracies", list(accuracies))
    study.tell(trial, sum(accuracies) / len(accuracies), skip_if_finished=True)


def prune(study: optuna.Study, trial: Trial) -> None:
    study.tell(trial, state=TrialState.PRUNED, skip_if_finished=True)


def fail(study: optuna.Study, trial: Trial, sentence: str) -> None:
    """Keep the reason."""
    trial.set_user_attr("sentence", sentence)
    study.tell(trial, state=TrialState.FAIL, skip_if_finished=True)


def finished(study: optuna.Study) -> list[FrozenTrial]:
    return study.get_trials(deepcopy=False, states=FINISHED)


def best(study: optuna.Study) -> FrozenTrial | None:
    """The complete trial with the highest value; of equals the first, which is the start where it is one of them."""
    done = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    return max(done, key=lambda trial: trial.value or 0.0, default=None)


def importances(study: optuna.Study) -> dict[str, float]:
    """How much of the value's variation each parameter explains, largest first; empty where there are too few trials."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Optuna calls its evaluators experimental
        try:
            return optuna.importance.get_param_importances(study)
        except (ValueError, RuntimeError, ZeroDivisionError):
            return {}
