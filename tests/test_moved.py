"""A repository that is moved, copied or mounted elsewhere: it writes only below itself, and finds what it has."""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import mlflow
import numpy as np
import pytest
import yaml

from src.ground.errors import UserError
from src.store.files import digest
from src.tracking import backlog, journal, mlflow_store
from src.tracking import tracker as tracking
from tests import studying
from tests.stored import kept
from tests.studying import RUN, call
from tests.test_store_states import forget_connections
from tests.test_ui import free_port, wait_for


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("MLFLOW_TRACKING_URI", "DVC_ROOT"):
        monkeypatch.delenv(variable, raising=False)
    for variable in mlflow_store.QUIET:
        monkeypatch.setenv(variable, mlflow_store.QUIET[variable])


@pytest.fixture(scope="module")
def store(fill: Callable[[Path], None], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh store."""
    file = tmp_path_factory.mktemp("store") / "mlflow.db"
    fill(file)
    return file


@pytest.fixture
def old(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with a run that has a picture."""
    place = tmp_path / "my repository"
    place.mkdir()
    shutil.copy(store, place)
    monkeypatch.chdir(place)
    session("old")
    return place


def session(name: str, experiment: str = "digits", value: int = 0) -> None:
    with tracking.track(experiment, name, "run", {}) as tracker:
        tracker.image("synthetic", np.full((8, 8, 3), value, np.uint8), value)
        Path("table.csv").write_text("a,b\n1,2\n")
        tracker.file(Path("table.csv"), "distill")


def rows(folder: Path, experiment: str = "digits") -> dict[str, Any]:
    """All runs of an experiment by name."""
    client = mlflow.MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
    found = client.get_experiment_by_name(experiment)
    assert found is not None
    return {run.info.run_name: run for run in client.search_runs([found.experiment_id])}


def as_before(folder: Path, place: Path | None = None) -> None:
    """The store as earlier versions left it: it names the place of every file."""
    root = (place or folder).as_uri()
    with closing(sqlite3.connect(folder / "mlflow.db")) as store, store:
        for table, column in (("experiments", "artifact_location"), ("runs", "artifact_uri")):
            store.execute(f"UPDATE {table} SET {column} = '{root}/' || {column} WHERE {column} LIKE 'mlartifacts/%'")


def locations(folder: Path) -> set[str]:
    with closing(sqlite3.connect(folder / "mlflow.db")) as store:
        found = store.execute("SELECT artifact_location FROM experiments UNION SELECT artifact_uri FROM runs")
        return {uri for (uri,) in found}


def pictures(folder: Path, name: str, experiment: str = "digits") -> list[str]:
    found = kept(folder, rows(folder, experiment)[name], "images")
    return [path for path in found if path.endswith(".png")]


@pytest.mark.parametrize("earlier", [False, True])
def test_moved(old: Path, monkeypatch: pytest.MonkeyPatch, earlier: bool) -> None:
    if earlier:
        as_before(old)
    new = old.rename(old.parent / "new")
    monkeypatch.chdir(new)
    session("new")
    session("old", value=1)
    assert not old.exists()
    assert (len(pictures(new, "old")), len(pictures(new, "new"))) == (2, 1)
    assert all(uri.startswith(("mlartifacts/", "mlruns/")) for uri in locations(new))
    with closing(sqlite3.connect(new / "mlflow.db")) as store:
        assert not [line for line in store.iterdump() if str(old.parent) in line]
    listed = mlflow.MlflowClient(mlflow_store.uri()).list_artifacts(rows(new)["old"].info.run_id, "distill")  # from the top
    assert [file.path for file in listed] == ["distill/table.csv"]


@pytest.mark.parametrize("earlier", [False, True])
def test_copied(old: Path, monkeypatch: pytest.MonkeyPatch, earlier: bool) -> None:
    if earlier:
        as_before(old)
    new = old.parent / "new"
    subprocess.run(["cp", "-a", old, new], check=True)
    before = digest(old)
    monkeypatch.chdir(new)
    session("new")
    session("old", value=1)
    assert digest(old) == before
    assert (len(pictures(new, "old")), len(pictures(new, "new"))) == (2, 1)


@pytest.mark.parametrize("earlier", [False, True])
def test_mounted_elsewhere_and_back(old: Path, monkeypatch: pytest.MonkeyPatch, earlier: bool) -> None:
    """As a container does, while the machine goes on under the path that it knows."""
    if earlier:
        as_before(old)
    mounted = old.parent / "mounted"
    mounted.symlink_to(old)
    for folder, name in ((mounted, "in the container"), (old, "outside"), (mounted, "in it again")):
        monkeypatch.chdir(folder)
        session(name)
    assert {len(pictures(old, name)) for name in ("old", "in the container", "outside", "in it again")} == {1}
    assert sorted(path.name for path in old.parent.iterdir()) == ["mounted", "my repository"]


def test_files_that_went_to_the_old_place_are_taken_in(old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What earlier versions did after a move: the rows in the new place, their files in the old one."""
    as_before(old)
    shutil.move(old, old.parent / "new")
    new = old.parent / "new"
    (run,) = rows(new).values()
    stray = old / "mlartifacts/digits" / run.info.run_id / "artifacts/distill/later.csv"
    stray.parent.mkdir(parents=True)
    stray.write_text("a\n")
    before = digest(old)
    monkeypatch.chdir(new)
    session("new")
    assert "distill/later.csv" in kept(new, rows(new)["old"])
    assert digest(old) == before


def test_other_locations_are_left_alone(old: Path, tmp_path: Path) -> None:
    """Experiments that people made for places of their own; deleted ones of this project's come back whole."""
    client = mlflow.MlflowClient(mlflow_store.uri())
    client.create_experiment("elsewhere", artifact_location=(tmp_path / "elsewhere").as_uri())
    client.create_experiment("bucket", artifact_location="s3://bucket/mlartifacts/digits")
    client.create_experiment("deep", artifact_location=(tmp_path / "mlartifacts/deep/er").as_uri())
    session("gone", "letters")
    as_before(old)
    letters = client.get_experiment_by_name("letters")
    assert letters is not None
    client.delete_experiment(letters.experiment_id)
    session("new")
    wanted = {(tmp_path / "elsewhere").as_uri(), "s3://bucket/mlartifacts/digits", (tmp_path / "mlartifacts/deep/er").as_uri()}
    assert {uri for uri in locations(old) if not uri.startswith(("mlartifacts/", "mlruns/"))} == wanted
    client.restore_experiment(letters.experiment_id)
    assert len(pictures(old, "gone", "letters")) == 1


def test_a_temporary_copy_of_dvcs_writes_into_the_repository(old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    aside = old / ".dvc/tmp/exps/aside"
    aside.mkdir(parents=True)
    monkeypatch.chdir(aside)
    monkeypatch.setenv("DVC_ROOT", str(old))
    session("aside")
    assert len(pictures(old, "aside")) == 1
    assert [path.name for path in aside.iterdir()] == ["table.csv"]


@pytest.mark.parametrize("uri", ["sqlite:///mlflow.db", "sqlite:///{old}/mlflow.db", "sqlite:///inner.db"])
def test_a_study_and_a_store_by_name(old: Path, monkeypatch: pytest.MonkeyPatch, uri: str) -> None:
    """A relative path is from the repository's top, wherever in it a study works."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri.format(old=old))
    monkeypatch.setenv("DVC_ROOT", str(old))
    (old / "data/tune/x").mkdir(parents=True)
    if "inner" in uri:
        shutil.copy(old / "mlflow.db", old / "inner.db")
    monkeypatch.chdir(old / "data/tune/x")
    session("trial")
    client = mlflow.MlflowClient(f"sqlite:///{old / Path(uri).name}")
    (run,) = [run for run in client.search_runs(["1"]) if run.info.run_name == "trial"]
    assert "distill/table.csv" in kept(old, run)
    assert [path.name for path in Path.cwd().iterdir()] == ["table.csv"]


def test_a_shared_store_keeps_its_artifacts_beside_it(old: Path, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of a store outside lies in one of the repositories that use it."""
    shared = old.parent / "shared"
    shared.mkdir()
    shutil.copy(store, shared)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{shared / 'mlflow.db'}")
    before = digest(old / "mlartifacts")
    session("a")
    client = mlflow.MlflowClient(f"sqlite:///{shared / 'mlflow.db'}")
    (run,) = client.search_runs(["1"])
    assert run.info.artifact_uri.startswith((shared / "mlartifacts/digits").as_uri())
    assert [file.path for file in client.list_artifacts(run.info.run_id, "distill")] == ["distill/table.csv"]
    assert digest(old / "mlartifacts") == before


def test_a_folder_that_is_gone_is_not_made_again(
    old: Path, store: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The variable still names the store by its old path; a shared store keeps an experiment's files in the old place."""
    new = old.rename(old.parent / "new")
    monkeypatch.chdir(new)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{old / 'mlflow.db'}")
    session("a")
    assert f"its folder {old} is not there" in capsys.readouterr().err
    shared = old.parent / "shared.db"
    shutil.copy(store, shared)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{shared}")
    mlflow.MlflowClient(f"sqlite:///{shared}").create_experiment("digits", (old / "mlartifacts/digits").as_uri())
    session("a")
    assert f"its folder {old} is not there" in capsys.readouterr().err
    assert not old.exists()
    assert len(journal.waiting()) == 2


@contextmanager
def ui(folder: Path) -> Iterator[str]:
    """The address of the UI's server, started as people start it."""
    port = free_port()
    server = subprocess.Popen(
        [sys.executable, "-m", "src.cli", "ui", "--port", str(port)], cwd=folder, env=studying.environment(folder),
        start_new_session=True, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        wait_for(port)
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def served(address: str, run: Any, path: str) -> bytes:
    with urllib.request.urlopen(f"{address}/get-artifact?path={quote(path)}&run_uuid={run.info.run_id}", timeout=30) as answer:
        content: bytes = answer.read()
        return content


@pytest.fixture(scope="module")
def worked_in(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with a distilled run, as earlier versions left it."""
    raw = studying.raw_params()
    raw["runs"] = {RUN: raw["runs"][RUN]}
    folder = studying.folder_of(tmp_path_factory.mktemp("worked"), raw)
    for words in ("experts", f"distill --run {RUN}", "track-sync"):  # which waits for the courier
        done = call(folder, words)
        assert done.returncode == 0, done.stderr
    return folder


def moved(old: Path) -> Path:
    return old.rename(old.parent / "new")


def copied(old: Path) -> Path:
    subprocess.run(["cp", "-a", old, old.parent / "new"], check=True)
    return old.parent / "new"


def mounted(old: Path) -> Path:
    real = old.rename(old.parent / "real")
    (old.parent / "new").symlink_to(real)
    return old.parent / "new"


@pytest.mark.slow
@pytest.mark.parametrize("elsewhere", [moved, copied, mounted])
def test_a_stage_and_the_ui_elsewhere(worked_in: Path, tmp_path: Path, elsewhere: Callable[[Path], Path]) -> None:
    old = tmp_path / "old"
    subprocess.run(["cp", "-a", worked_in, old], check=True)
    as_before(old)
    new = elsewhere(old)
    before = digest(old) if old.exists() else None
    params = yaml.safe_load((new / "params.yaml").read_text())
    params["runs"][RUN]["distill"]["lr_img"] = 7.0
    (new / "params.yaml").write_text(yaml.safe_dump(params))
    for words in (f"distill --run {RUN}", "track-sync"):
        done = call(new, words)
        assert done.returncode == 0, done.stderr
        assert "Warning" not in done.stderr
    client = mlflow.MlflowClient(f"sqlite:///{new / 'mlflow.db'}")
    found = {run.data.params.get("distill.lr_img"): run for run in client.search_runs(["1"]) if run.info.run_name == RUN}
    assert len(found) == 2
    with ui(new) as address:
        for run in found.values():
            (path,) = [path for path in kept(new, run, "images") if path.endswith(".png") and "step+0+" in path]
            assert (
                served(address, run, path) == (new / "mlartifacts/digits" / run.info.run_id / "artifacts" / path).read_bytes()
            )
            assert b"matching_loss" in served(address, run, "distill/history.csv")
    assert (digest(old) if old.exists() else None) == before


@pytest.fixture
def open_to_others(old: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The same repository in a place where other users get at it."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        new = Path(shutil.move(old, name))
        monkeypatch.chdir(new)
        yield new
        monkeypatch.chdir("/")


@contextmanager
def as_another_user() -> Iterator[None]:
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
@pytest.mark.parametrize("apart", [False, True])
def test_another_user_who_may_not_write(
    open_to_others: Path, apart: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tracking, "apart", apart)
    old = open_to_others
    before, listed = digest(old), sorted(old.parent.iterdir())
    for path in (old, *old.rglob("*")):
        path.chmod(0o555 if path.is_dir() else 0o444)
    with as_another_user(), tracking.track("digits", "new", "run", {}) as tracker:
        tracker.metrics({"x": 1.0})
    said = capsys.readouterr().err
    assert said.count("Warning") == (1 if apart else 2)
    assert apart or "can't be used (Permission denied): free space or permit access there" in said
    assert "what MLflow is to be told can't be kept" in said
    assert (digest(old), sorted(old.parent.iterdir())) == (before, listed)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_a_store_that_another_user_may_only_read(open_to_others: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What is tracked waits, and is told when that is mended."""
    old = open_to_others
    (old / ".mlflow.lock").unlink()
    for folder in (old, old / ".cache"):
        folder.mkdir(exist_ok=True)
        folder.chmod(0o777)
    with as_another_user(), tracking.track("digits", "new", "run", {}) as tracker:
        tracker.metrics({"x": 1.0})
    assert "readonly database" in (said := capsys.readouterr().err)
    assert ": permit writing there; this stage goes on" in said
    forget_connections()
    backlog.sync()
    assert rows(old)["new"].data.metrics["x"] == 1.0


def test_the_ui_says_what_is_wrong_in_a_sentence(old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for uri, said in (
        (f"sqlite:///{old.parent}/nowhere/mlflow.db", f"its folder {old.parent}/nowhere is not there"),
        ("http://localhost:5000/", "open http://localhost:5000 in a browser"),
    ):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        with pytest.raises(UserError, match=said):
            mlflow_store.serve(5000)
