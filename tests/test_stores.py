"""Stores that move, go, come back, are wrong or emptied: nothing lost, nothing in another store, no healthy one held up."""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule, run_state_machine_as_test
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

from src.ground.errors import UserError
from src.io import backlog, courier, journal, mlflow_store, tracking
from tests.imports import ROOT
from tests.test_ui import free_port, wait_for

PICTURE = np.zeros((4, 4, 3), np.uint8)
TYPO = "localhost:5000"  # no scheme: MLflow can't make anything of it


@pytest.fixture(scope="module")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store without experiments: its tables take seconds to make."""
    path = tmp_path_factory.mktemp("store") / "empty.db"
    mlflow.MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def checkout(tmp_path: Path, empty_store: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "old"
    folder.mkdir()
    shutil.copy(empty_store, folder / "mlflow.db")
    enter(folder, monkeypatch)
    return folder


def enter(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setenv("DVC_ROOT", str(folder))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    for variable, value in mlflow_store.QUIET.items():
        monkeypatch.setenv(variable, value)


def track(name: str, step: int = 0, experiment: str = "digits") -> None:
    """What a stage tells: a picture, a table, a point."""
    with tracking.track(experiment, name, "trial", {"ast.fingerprint": name}) as tracker:
        tracker.image("synthetic", PICTURE, step)
        Path("students.csv").write_text("a,b\n1,2\n")
        tracker.file(Path("students.csv"), "evaluate")
        tracker.metrics({"x": 1.0}, step)


def delivered() -> None:
    """Wait for the courier."""
    for _ in range(300):
        if not journal.waiting():
            return
        time.sleep(0.1)
    raise TimeoutError


def content(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def pictures(folder: Path) -> dict[str, int]:
    """By run: pictures that are where the store says, read by MLflow's own client from the repository's top."""
    client = mlflow.MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
    found = client.get_experiment_by_name("digits")
    assert found is not None
    runs = client.search_runs([found.experiment_id])
    return {
        str(run.info.run_name): sum(file.path.endswith(".png") for file in client.list_artifacts(run.info.run_id, "images"))
        for run in runs
    }


def absolute_places(folder: Path, texts: tuple[str, ...]) -> list[str]:
    """Values of the store in which one of the texts stands."""
    with contextlib.closing(sqlite3.connect(folder / "mlflow.db")) as database:
        return [line for line in database.iterdump() if any(text in line for text in texts)]


# -- a checkout that goes elsewhere


def test_a_moved_checkout_writes_below_itself_alone(checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    track("one")
    new = tmp_path / "new"
    checkout.rename(new)
    enter(new, monkeypatch)
    track("two")
    track("one", step=5)
    assert not checkout.exists()
    assert pictures(new) == {"one": 2, "two": 1}
    assert absolute_places(new, (str(checkout), str(new))) == []


def test_a_copied_checkout_leaves_the_other_alone(checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    track("one")
    copy = tmp_path / "copy"
    shutil.copytree(checkout, copy)
    before = content(checkout)
    enter(copy, monkeypatch)
    track("two")
    track("one", step=5)
    assert content(checkout) == before
    assert pictures(copy) == {"one": 2, "two": 1}


def test_a_checkout_that_is_mounted_elsewhere(checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By turns under both paths, as of a host and a container."""
    track("one")
    mount = tmp_path / "mount"
    mount.symlink_to(checkout)
    enter(mount, monkeypatch)
    track("two")
    enter(checkout, monkeypatch)
    track("three")
    assert pictures(checkout) == {"one": 1, "two": 1, "three": 1}


def test_rows_with_absolute_places_are_found_again(checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As older versions of this repository, and MLflow itself, write them; a place that was chosen elsewhere stays."""
    client = mlflow.MlflowClient(mlflow_store.uri())
    ours = client.create_experiment("digits", artifact_location=(checkout / "mlartifacts" / "digits").as_uri())
    theirs = client.create_experiment("mine", artifact_location=(tmp_path / "elsewhere").as_uri())
    run = client.create_run(ours, run_name="before")
    client.log_artifact(run.info.run_id, __file__, "images")
    other = client.create_run(theirs)
    new = tmp_path / "new"
    checkout.rename(new)
    enter(new, monkeypatch)
    track("one")
    with contextlib.closing(sqlite3.connect("mlflow.db")) as database:
        places = dict(database.execute("SELECT name, artifact_location FROM experiments"))
        runs = dict(database.execute("SELECT run_uuid, artifact_uri FROM runs"))
    assert places == {"Default": "mlruns/0", "digits": "mlartifacts/digits", "mine": (tmp_path / "elsewhere").as_uri()}
    assert runs[run.info.run_id] == f"mlartifacts/digits/{run.info.run_id}/artifacts"
    assert runs[other.info.run_id] == f"{(tmp_path / 'elsewhere').as_uri()}/{other.info.run_id}/artifacts"
    listed = mlflow.MlflowClient(mlflow_store.uri()).list_artifacts(run.info.run_id, "images")
    assert [file.path for file in listed] == ["images/test_stores.py"]


@pytest.mark.slow
def test_the_ui_of_a_moved_checkout_shows_old_and_new_pictures(
    checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    track("one")
    new = tmp_path / "new"
    checkout.rename(new)
    enter(new, monkeypatch)
    track("two")
    client = mlflow.MlflowClient(mlflow_store.uri())
    runs = client.search_runs(["1"])
    files = {run.info.run_id: [file.path for file in client.list_artifacts(run.info.run_id, "images")] for run in runs}
    port = free_port()
    command = [sys.executable, "-m", "src.cli", "ui", "--port", str(port)]
    monkeypatch.chdir(tmp_path)  # the server finds the pictures wherever it is started
    server = subprocess.Popen(
        command, env={**os.environ, "PYTHONPATH": str(ROOT)}, start_new_session=True, stderr=subprocess.DEVNULL
    )
    try:
        wait_for(port)
        for run, paths in files.items():
            for path in paths:
                query = urllib.parse.urlencode({"path": path, "run_uuid": run})
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/get-artifact?{query}", timeout=20) as answer:
                    stored = new / "mlartifacts/digits" / run / "artifacts" / path
                    assert answer.read() == stored.read_bytes()
    finally:
        os.killpg(server.pid, 9)
        server.wait()
    assert len(files) == 2


def test_the_courier_of_a_moved_checkout_does_not_make_the_old_one_again(
    checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracking, "apart", True)
    track("one")
    delivered()
    new = tmp_path / "new"
    checkout.rename(new)
    enter(new, monkeypatch)
    track("two")
    delivered()
    assert not checkout.exists()
    assert pictures(new) == {"one": 1, "two": 1}


def test_a_store_that_may_not_be_written(
    checkout: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Another user's: it is said, and what was to be told waits below the checkout, or is said to be lost."""
    track("one")

    def refuse(*_: Any, **__: Any) -> None:
        raise sqlite3.OperationalError("attempt to write a readonly database")

    with monkeypatch.context() as patch:
        patch.setattr(mlflow_store, "open_row", refuse)
        track("two")
    said = capsys.readouterr().err
    assert "this repository's own store, mlflow.db, failed (attempt to write a readonly database)" in said
    assert len(journal.waiting()) == 1
    backlog.sync()
    assert pictures(checkout) == {"one": 1, "two": 1}


# -- whose backlog it is


def test_a_backlog_for_a_wrong_address_holds_up_nobody(
    checkout: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", TYPO)
    track("astray")
    assert f"Warning: MLflow at {TYPO} failed" in capsys.readouterr().err
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    track("one")
    assert capsys.readouterr().err == "", "the healthy store is told, and not blamed"
    assert pictures(checkout) == {"one": 1}
    with pytest.raises(UserError, match=rf"^1 session still waits for MLflow at {TYPO}: .*--to own --from {TYPO} or --forget"):
        backlog.sync()
    backlog.sync("own", TYPO)
    assert pictures(checkout) == {"one": 1, "astray": 1}
    backlog.sync()
    assert "nothing waits for MLflow" in capsys.readouterr().err


def test_a_backlog_is_dropped_only_where_it_is_told(
    checkout: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for store in (TYPO, "http://127.0.0.1:9"):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
        track("astray")
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    with pytest.raises(UserError) as caught:
        backlog.sync()
    assert str(caught.value).count("1 session still waits") == 2
    backlog.forget("http://127.0.0.1:9/")
    assert "astray: dropped" in capsys.readouterr().err
    assert [journal.opening_of(path).store for path in journal.waiting()] == [TYPO]
    backlog.forget("http://127.0.0.1:9")
    assert "nothing waits for MLflow at http://127.0.0.1:9" in capsys.readouterr().err


@pytest.mark.parametrize("spelling", ["sqlite:///mlflow.db", "sqlite:///{top}/mlflow.db", "sqlite:///{top}/x/../mlflow.db"])
def test_spellings_of_the_own_store(spelling: str, checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", spelling.format(top=checkout))
    assert mlflow_store.chosen() is None
    track("one")
    assert pictures(checkout) == {"one": 1}


# -- deleted experiments


def test_a_deleted_experiment_is_said_and_restored(checkout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    track("one")
    client = mlflow.MlflowClient(mlflow_store.uri())
    client.delete_experiment("1")
    track("two")
    said = capsys.readouterr().err
    restore = f"MLFLOW_TRACKING_URI={mlflow_store.uri()} mlflow experiments restore --experiment-id 1"
    assert f"its experiment 'digits' is deleted: restore it with `{restore}`" in said
    track("three", experiment="others")  # which goes on
    assert client.get_experiment_by_name("others") is not None
    with pytest.raises(UserError, match=r"1 session still waits .*is deleted: restore it"):
        backlog.sync()
    words = [Path(sys.executable).with_name("mlflow"), *restore.split()[2:]]
    done = subprocess.run(
        words, env={**os.environ, "MLFLOW_TRACKING_URI": mlflow_store.uri()}, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr
    backlog.sync()
    assert pictures(checkout) == {"one": 1, "two": 1}


def test_the_courier_notes_what_a_stage_is_to_say(
    checkout: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    track("one")
    mlflow.MlflowClient(mlflow_store.uri()).delete_experiment("1")
    with monkeypatch.context() as patch:
        patch.setattr(tracking, "apart", True)
        patch.setattr(courier, "ensure", lambda: None)
        patch.setattr(courier, "IDLE_SECONDS", 1.0)
        track("two")
        assert capsys.readouterr().err == ""
        courier._work()
        track("three")
    said = capsys.readouterr().err
    assert said.count("two is not tracked yet, as its experiment 'digits' is deleted") == 1
    mlflow.MlflowClient(mlflow_store.uri()).restore_experiment("1")
    backlog.sync()
    assert pictures(checkout) == {"one": 1, "two": 1, "three": 1}


# -- any order of all that


class Stores(RuleBasedStateMachine):
    """Three stores: the repository's own, another one and an address where there is none. What each is to hold is known."""

    empty: Path
    place: Path

    @initialize()
    def begin(self) -> None:
        self.top = Path(tempfile.mkdtemp(dir=self.place))
        self.folder = self.top / "checkout"
        self.folder.mkdir()
        self.databases = {"own": self.folder / "mlflow.db", "other": self.top / "other.db"}
        self.addresses = {"own": None, "other": f"sqlite:///{self.databases['other']}", "wrong": TYPO}
        for path in self.databases.values():
            shutil.copy(self.empty, path)
        os.chdir(self.folder)
        os.environ["DVC_ROOT"] = str(self.folder)
        self.number, self.deleted = 0, set[str]()
        self.meant: dict[str, set[str]] = {store: set() for store in self.addresses}
        self.told: dict[str, set[str]] = {store: set() for store in self.addresses}

    def there(self, store: str) -> bool:
        return store in self.databases and self.databases[store].is_file()

    @rule(store=st.sampled_from(["own", "other", "wrong"]))
    def work(self, store: str) -> None:
        """A stage: what waits for its store, and it itself, are there afterwards, if the store is."""
        self.number += 1
        name = f"run-{self.number}"
        with pytest.MonkeyPatch.context() as patch:
            address = self.addresses[store]
            patch.setenv("MLFLOW_TRACKING_URI", address) if address else patch.delenv("MLFLOW_TRACKING_URI", raising=False)
            with tracking.track("digits", name, "trial", {"ast.fingerprint": name}) as tracker:
                tracker.metrics({"x": float(self.number)})
        self.meant[store].add(name)
        if self.there(store) and store not in self.deleted:
            self.told[store] = set(self.meant[store])

    @rule()
    def sync(self) -> None:
        waiting = set()
        for store in self.addresses:
            if self.there(store) and store not in self.deleted:
                self.told[store] = set(self.meant[store])
            waiting |= self.meant[store] - self.told[store]
        if waiting:
            with pytest.raises(UserError, match="still wait"):
                backlog.sync()
        else:
            backlog.sync()
        assert {journal.name_of(path) for path in journal.waiting()} == waiting

    @precondition(lambda self: self.meant["wrong"] - self.told["wrong"] and self.there("own") and "own" not in self.deleted)
    @rule()
    def send_elsewhere(self) -> None:
        backlog.sync("own", TYPO)
        self.meant["own"] |= self.meant["wrong"]
        self.told["own"] |= self.meant["wrong"]
        self.meant["wrong"] = set()

    @precondition(lambda self: self.meant["wrong"])
    @rule()
    def forget(self) -> None:
        backlog.forget(TYPO)
        self.meant["wrong"] = set()

    @rule(store=st.sampled_from(["own", "other"]))
    def go_or_come_back(self, store: str) -> None:
        """In its place lies a folder meanwhile, so that nobody makes a new one."""
        path, away = self.databases[store], self.top / f"{store}.away"
        if path.is_file():
            path.rename(away)
            path.mkdir()
        else:
            path.rmdir()
            away.rename(path)
        for engine in SqlAlchemyStore._engine_map.values():
            engine.dispose()  # connections of this process would follow the file

    @rule(store=st.sampled_from(["own", "other"]))
    def delete_or_restore(self, store: str) -> None:
        if not self.there(store) or not self.told[store]:
            return
        client = mlflow.MlflowClient(f"sqlite:///{self.databases[store]}")
        change = client.restore_experiment if store in self.deleted else client.delete_experiment
        change("1")
        self.deleted ^= {store}

    @invariant()
    def each_store_holds_what_is_its(self) -> None:
        for store, path in getattr(self, "databases", {}).items():
            if path.is_file():
                with contextlib.closing(sqlite3.connect(path)) as database:
                    rows = database.execute("SELECT name FROM runs").fetchall()
                assert sorted(name for (name,) in rows) == sorted(self.told[store])

    @invariant()
    def nothing_is_lost(self) -> None:
        waiting = {journal.name_of(path) for path in journal.waiting()} if hasattr(self, "meant") else set()
        for store, meant in getattr(self, "meant", {}).items():
            assert meant - self.told[store] <= waiting


@pytest.fixture
def machine(tmp_path: Path, empty_store: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Stores]]:
    enter(tmp_path, monkeypatch)
    Stores.empty, Stores.place = empty_store, tmp_path
    yield Stores


def test_any_order_of_stores(machine: type[Stores]) -> None:
    calm = settings(
        max_examples=12, stateful_step_count=12, deadline=None, database=None, derandomize=True,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    run_state_machine_as_test(machine, settings=calm)
