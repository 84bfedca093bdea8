"""Stores in any order gone, wrong, back, with experiments deleted and restored: nothing is lost, mixed up or blocked."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import mlflow
import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

from src.ground.errors import UserError
from src.tracking import backlog, mlflow_store
from src.tracking import tracker as tracking
from src.tracking.tracker import Nest

STORES = ("own", "shared", "other")
EXPERIMENTS = ("digits", "letters")
Points = dict[tuple[str, str], list[int]]  # experiment and run -> what it was told

stores, experiments = st.sampled_from(STORES), st.sampled_from(EXPERIMENTS)


class States(RuleBasedStateMachine):
    """A repository with its store, two stores outside, and what each of them ought to hold."""

    template: Path

    def __init__(self) -> None:
        super().__init__()
        self.top = Path(tempfile.mkdtemp())
        self.before = Path.cwd()
        self.folders = {"own": self.top / "repository", "shared": self.top / "shared", "other": self.top / "other"}
        for folder in self.folders.values():
            folder.mkdir()
            shutil.copy(self.template, folder)
        os.chdir(self.folders["own"])
        self.told: dict[str, Points] = {store: defaultdict(list) for store in STORES}
        self.state = dict.fromkeys(STORES, "there")
        self.deleted: set[tuple[str, str]] = set()
        self.count = 0

    @initialize()
    def begin(self) -> None:
        for store in STORES:
            for experiment in EXPERIMENTS:
                self.session(store, experiment, "a")

    # -- what happens to stores

    @rule(store=stores, state=st.sampled_from(("gone", "wrong")))
    def goes(self, store: str, state: str) -> None:
        if self.state[store] == "there":
            self._goes(store, state)

    def _goes(self, store: str, state: str) -> None:
        folder, aside = self.folders[store], self.top / f"aside-{store}"
        if state == "gone" and store != "own":  # the repository's own folder can't go
            folder.rename(aside)
        else:
            aside.mkdir()
            (folder / "mlflow.db").rename(aside / "mlflow.db")
            (folder / "mlflow.db").write_bytes(b"not a database" * 100)
        self.state[store] = state
        forget_connections()

    @rule(store=stores)
    def comes_back(self, store: str) -> None:
        if self.state[store] == "there":
            return
        folder, aside = self.folders[store], self.top / f"aside-{store}"
        if folder.exists():
            (aside / "mlflow.db").replace(folder / "mlflow.db")
            aside.rmdir()
        else:
            aside.rename(folder)
        self.state[store] = "there"
        forget_connections()

    @precondition(lambda self: len(self.deleted) < 3)
    @rule(store=stores, experiment=experiments)
    def is_deleted(self, store: str, experiment: str) -> None:
        if self.state[store] == "there" and (store, experiment) not in self.deleted:
            self.deleted.add((store, experiment))
            self.client(store).delete_experiment(self.experiment(store, experiment).experiment_id)

    @rule(store=stores, experiment=experiments)
    def is_restored(self, store: str, experiment: str) -> None:
        if self.state[store] == "there" and (store, experiment) in self.deleted:
            self.deleted.remove((store, experiment))
            self.client(store).restore_experiment(self.experiment(store, experiment).experiment_id)

    # -- what happens to sessions

    @rule(store=stores, experiment=experiments, name=st.sampled_from("ab"))
    def session(self, store: str, experiment: str, name: str) -> None:
        self.point_at(store)
        with tracking.track(experiment, name, "trial", {"ast.fingerprint": name}) as tracker:
            self.tell(tracker, store, experiment, name)
        self.check(store, experiment)

    @rule(store=stores, experiment=experiments, goes=st.booleans())
    def study(self, store: str, experiment: str, goes: bool) -> None:
        """A run with one inside; its store may go between the two."""
        self.point_at(store)
        name = f"study-{self.count}"
        with tracking.track(experiment, name, "study", {"optuna.study": name}) as parent:
            if goes and self.state[store] == "there":
                self._goes(store, "gone")
            with (
                tracking.nested(Nest(experiment, parent.opening)),
                tracking.track("x", f"{name} inside", "trial", {"optuna.study": name}) as tracker,
            ):
                self.tell(tracker, store, experiment, f"{name} inside")
            self.tell(parent, store, experiment, name)
        self.check(store, experiment)

    @rule()
    def sync(self) -> None:
        self.point_at("own")
        try:
            backlog.sync()
        except UserError as error:
            healthy = [store for store in STORES if self.state[store] == "there" and not self.deleted_in(store)]
            assert not [store for store in healthy if self.uri(store) in str(error)]
        for store in STORES:
            for experiment in EXPERIMENTS:
                self.check(store, experiment)

    # -- what ought to be

    def tell(self, tracker: tracking.Tracker, store: str, experiment: str, name: str) -> None:
        self.count += 1
        tracker.metrics({"x": float(self.count)}, self.count)
        self.told[store][experiment, name].append(self.count)

    def check(self, store: str, experiment: str) -> None:
        """A store that is there lacks nothing; no store holds what was for another."""
        if self.state[store] == "there" and (store, experiment) not in self.deleted:
            wanted = {key: told for key, told in self.told[store].items() if key[0] == experiment}
            assert self.held(store, experiment) == wanted

    def held(self, store: str, experiment: str) -> Points:
        client, found = self.client(store), {}
        for run in client.search_runs([self.experiment(store, experiment).experiment_id]):
            key = (experiment, run.info.run_name or "")
            assert key not in found
            found[key] = sorted(int(point.value) for point in client.get_metric_history(run.info.run_id, "x"))
        return found

    def teardown(self) -> None:
        try:
            for store in STORES:
                self.comes_back(store)
                for experiment in EXPERIMENTS:
                    self.is_restored(store, experiment)
            self.point_at("own")
            backlog.sync()  # raises where something still waits
            for store in STORES:
                for experiment in EXPERIMENTS:
                    self.check(store, experiment)
                    self.check_children(store, experiment)
        finally:
            forget_connections()
            os.chdir(self.before)
            shutil.rmtree(self.top)

    def check_children(self, store: str, experiment: str) -> None:
        runs = self.client(store).search_runs([self.experiment(store, experiment).experiment_id])
        ids = {run.info.run_name: run.info.run_id for run in runs}
        for run in runs:
            if " inside" in str(run.info.run_name):
                assert run.data.tags["mlflow.parentRunId"] == ids[str(run.info.run_name).removesuffix(" inside")]

    def deleted_in(self, store: str) -> list[str]:
        return [experiment for name, experiment in self.deleted if name == store]

    def uri(self, store: str) -> str:
        return "sqlite:///mlflow.db" if store == "own" else f"sqlite:///{self.folders[store]}/mlflow.db"

    def point_at(self, store: str) -> None:
        os.environ["MLFLOW_TRACKING_URI"] = self.uri(store)

    def client(self, store: str) -> mlflow.MlflowClient:
        return mlflow.MlflowClient(f"sqlite:///{self.folders[store]}/mlflow.db")

    def experiment(self, store: str, name: str) -> Any:
        return self.client(store).get_experiment_by_name(name)


def forget_connections() -> None:
    """As a new process would, which is what every stage is."""
    for engine in SqlAlchemyStore._engine_map.values():
        engine.dispose()


def test_any_order_of_states(
    fill: Callable[[Path], None], tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    States.template = tmp_path_factory.mktemp("store") / "mlflow.db"
    fill(States.template)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")
    monkeypatch.delenv("DVC_ROOT", raising=False)
    for variable in mlflow_store.QUIET:
        monkeypatch.setenv(variable, mlflow_store.QUIET[variable])
    few = settings(
        max_examples=6, stateful_step_count=16, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
    )
    run_state_machine_as_test(States, settings=few)  # type: ignore[no-untyped-call]
