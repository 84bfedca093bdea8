"""What waits for a store waits for that one alone: sentences, options, and names of stores that are spelled differently."""

from __future__ import annotations

import json
import shutil
import sqlite3
import sys
import threading
from collections.abc import Callable
from contextlib import closing
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import mlflow
import pytest

from src import cli
from src.ground.errors import UserError
from src.tracking import backlog, delivery, journal, mlflow_store, stores
from src.tracking import tracker as tracking
from src.tracking.tracker import Nest

DEAD = "http://127.0.0.1:9"


@pytest.fixture(scope="module")
def fresh(fill: Callable[[Path], None], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh store."""
    file = tmp_path_factory.mktemp("store") / "mlflow.db"
    fill(file)
    return file


@pytest.fixture(autouse=True)
def place(fresh: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a repository with a store of its own, beside a folder with another one."""
    for folder in ("repository", "shared"):
        (tmp_path / folder).mkdir()
        shutil.copy(fresh, tmp_path / folder)
    monkeypatch.chdir(tmp_path / "repository")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    for variable in mlflow_store.QUIET:
        monkeypatch.setenv(variable, mlflow_store.QUIET[variable])


@pytest.fixture
def go_to(monkeypatch: pytest.MonkeyPatch) -> Callable[[str | None], None]:
    def go(uri: str | None) -> None:
        monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
        if uri is not None:
            monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)

    return go


def session(name: str, value: float = 1.0, experiment: str = "digits") -> None:
    with tracking.track(experiment, name, "trial", {"ast.fingerprint": name}) as tracker:  # a kind that isn't sampled
        tracker.metrics({"x": value}, int(value))


def points(file: Path, experiment: str = "digits") -> dict[str, list[float]]:
    """Values of x of every run, by the run's name."""
    client = mlflow.MlflowClient(f"sqlite:///{file.absolute()}")
    found = client.get_experiment_by_name(experiment)
    runs = client.search_runs([found.experiment_id]) if found else []
    return {run.info.run_name: sorted(p.value for p in client.get_metric_history(run.info.run_id, "x")) for run in runs}


@pytest.mark.parametrize(
    ("uri", "name"),
    [
        (None, "sqlite:///mlflow.db"),
        (" ", "sqlite:///mlflow.db"),
        ("sqlite:///mlflow.db", "sqlite:///mlflow.db"),
        ("sqlite:///./mlflow.db", "sqlite:///mlflow.db"),
        ("sqlite:///{here}/mlflow.db", "sqlite:///mlflow.db"),
        ("sqlite:///../shared/mlflow.db", "sqlite:///{above}/shared/mlflow.db"),
        ("localhost:5000", "http://localhost:5000"),
        ("http://localhost:5000/", "http://localhost:5000"),
        ("HTTP://LocalHost:5000", "http://localhost:5000"),
        ("http://me:PassWord@Host:80/mlflow/", "http://me:PassWord@host/mlflow"),
        ("https://host:443", "https://host"),
        ("postgresql://me@host:5432/runs", "postgresql://me@host:5432/runs"),
        ("htp://x", "htp://x"),
    ],
)
def test_one_store_has_one_name(uri: str | None, name: str, tmp_path: Path) -> None:
    filled = None if uri is None else uri.format(here=Path.cwd())
    assert stores.named(filled) == name.format(above=tmp_path)
    assert stores.named(stores.named(filled)) == stores.named(filled)
    assert stores.named(stores.address(stores.named(filled))) == stores.named(filled)


def test_a_stage_tracks_to_its_store_while_another_is_waited_for(
    go_to: Callable[[str | None], None], capsys: pytest.CaptureFixture[str]
) -> None:
    go_to("localhost:9")  # a typo, or a server that has retired
    session("typo")
    said = capsys.readouterr().err
    assert "Warning: MLflow at http://localhost:9 failed" in said
    go_to(None)
    session("healthy")
    said = capsys.readouterr().err
    assert "Warning" not in said
    assert "MLflow's backlog: 1 session for http://localhost:9, see" in said
    assert points(Path("mlflow.db")) == {"healthy": [1.0]}
    with pytest.raises(UserError) as raised:
        backlog.sync()
    assert "1 session still waits for http://localhost:9: MLflow at http://localhost:9 failed" in str(raised.value)
    assert "sqlite" not in str(raised.value)
    assert points(Path("mlflow.db")) == {"healthy": [1.0]}


class Agreeing(BaseHTTPRequestHandler):
    """Another web server, which answers whatever it is asked with an empty object."""

    def do_GET(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.send_response(200)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    def do_POST(self) -> None:
        self.do_GET()

    def log_message(self, format: str, *args: Any) -> None:
        pass


def test_what_a_web_server_of_another_kind_is_told_still_waits(
    go_to: Callable[[str | None], None], capsys: pytest.CaptureFixture[str]
) -> None:
    with HTTPServer(("127.0.0.1", 0), Agreeing) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        uri = f"http://127.0.0.1:{server.server_port}"
        go_to(uri)
        session("lost")
        server.shutdown()
    assert f"MLflow at {uri} failed (what answers there is no MLflow): start it, or name another" in capsys.readouterr().err
    assert [opening.name for _, opening in journal.sessions()] == ["lost"]


def test_each_store_gets_its_own_and_one_that_is_gone_keeps_none_from_the_next(
    go_to: Callable[[str | None], None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shared, hidden = tmp_path / "shared", tmp_path / "hidden"
    shared.rename(hidden)
    for uri, name in ((DEAD, "dead"), (f"sqlite:///{shared}/mlflow.db", "shared"), (DEAD, "dead again")):
        go_to(uri)
        session(name)
    hidden.rename(shared)
    capsys.readouterr()
    go_to(None)
    with pytest.raises(UserError, match=f"^2 sessions still wait for {DEAD}: MLflow at {DEAD} failed"):
        backlog.sync()
    assert f"sqlite:///{shared}/mlflow.db: shared: 1 point" in capsys.readouterr().err
    assert points(shared / "mlflow.db") == {"shared": [1.0]}
    assert points(Path("mlflow.db")) == {}
    assert [opening.name for _, opening in journal.sessions()] == ["dead", "dead again"]


def test_to_another_store_only_when_told(
    go_to: Callable[[str | None], None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = "http://127.0.0.1:10"
    for uri, name in ((DEAD, "a"), (other, "b"), (DEAD, "a")):
        go_to(uri)
        session(name, 1.0 + len(journal.waiting()))
    go_to(None)
    with pytest.raises(UserError, match=f"sessions wait for {DEAD} and {other}: say with --from which"):
        backlog.sync(to="sqlite:///mlflow.db")
    with pytest.raises(UserError, match=f"nothing waits for htp://x: {DEAD} and {other} is waited for"):
        backlog.sync("htp://x")
    backlog.sync(f"{DEAD}/", f"sqlite:///{tmp_path}/repository/mlflow.db")
    assert points(Path("mlflow.db")) == {"a": [1.0, 3.0]}
    backlog.sync(to=f"sqlite:///{tmp_path}/shared/mlflow.db")
    assert points(tmp_path / "shared/mlflow.db") == {"b": [2.0]}
    assert points(Path("mlflow.db")) == {"a": [1.0, 3.0]}
    capsys.readouterr()
    backlog.sync()
    assert "nothing waits" in capsys.readouterr().err


def test_a_study_goes_to_another_store_with_its_trials(go_to: Callable[[str | None], None], tmp_path: Path) -> None:
    """Also where the study's own run was begun in its store, before that was gone."""
    shared = tmp_path / "shared"
    go_to(f"sqlite:///{shared}/mlflow.db")
    with tracking.track("studies", "study", "study", {"optuna.study": "s"}) as study:
        assert study.opening.run_id is not None
        shared.rename(tmp_path / "gone")
        for name in ("trial-0", "trial-1"):
            with (
                tracking.nested(Nest("studies", study.opening)),
                tracking.track("x", name, "trial", {"optuna.trial": name}) as trial,
            ):
                trial.metrics({"x": 0.5})
    assert not shared.exists()
    go_to(None)
    backlog.sync(to="sqlite:///mlflow.db")
    client = mlflow.MlflowClient(mlflow_store.uri())
    rows = {run.info.run_name: run for run in client.search_runs(["1"])}
    assert set(rows) == {"study", "trial-0", "trial-1"}
    assert {rows[name].data.tags["mlflow.parentRunId"] for name in ("trial-0", "trial-1")} == {rows["study"].info.run_id}
    assert {run.info.status for run in rows.values()} == {"FINISHED"}


def test_forgotten(go_to: Callable[[str | None], None], capsys: pytest.CaptureFixture[str]) -> None:
    for uri, name in ((DEAD, "a"), ("http://127.0.0.1:10", "b")):
        go_to(uri)
        session(name)
    capsys.readouterr()
    backlog.forget("127.0.0.1:9")
    assert f"{DEAD}: a: 1 point dropped" in capsys.readouterr().err
    assert [opening.name for _, opening in journal.sessions()] == ["b"]
    with pytest.raises(UserError, match=f"nothing waits for {DEAD}"):
        backlog.forget(DEAD)


def test_what_waits_moves_with_the_repository(
    go_to: Callable[[str | None], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its own store has no place, nor has a session of an earlier version that named none."""
    Path("mlflow.db").write_bytes(b"not a database" * 100)
    for uri in (f"sqlite:///{Path.cwd()}/mlflow.db", None):
        go_to(uri)
        session(f"{uri is None}")
    first = journal.waiting()[0] / journal.LINES
    lines = first.read_text().splitlines(keepends=True)
    opening = json.loads(lines[0])["opening"]
    assert str(tmp_path) not in opening["store"]
    first.write_text("".join([json.dumps({"opening": {**opening, "store": None}}) + "\n", *lines[1:]]))
    new = (tmp_path / "repository").rename(tmp_path / "new")
    monkeypatch.chdir(new)
    shutil.copy(tmp_path / "shared/mlflow.db", new)
    backlog.sync()
    assert set(points(new / "mlflow.db")) == {"True", "False"}
    assert not (tmp_path / "repository").exists()


def test_a_deleted_experiment_is_restored_as_the_sentence_says(
    go_to: Callable[[str | None], None], capsys: pytest.CaptureFixture[str]
) -> None:
    session("a")
    client = mlflow.MlflowClient(mlflow_store.uri())
    client.delete_experiment("1")
    session("a", 2.0)
    said = capsys.readouterr().err
    restore = "`MLFLOW_TRACKING_URI=sqlite:///mlflow.db mlflow experiments restore --experiment-id 1` brings it back"
    assert f"MLflow at sqlite:///mlflow.db: the experiment 'digits' is deleted, and {restore}" in said
    assert "start it" not in said
    session("b", experiment="letters")  # the store is healthy
    assert "Warning" not in capsys.readouterr().err
    assert points(Path("mlflow.db"), "letters") == {"b": [1.0]}
    with pytest.raises(UserError, match=r"a still waits for sqlite:///mlflow.db: .*the experiment 'digits' is deleted, and"):
        backlog.sync()
    client.restore_experiment("1")
    backlog.sync()
    assert points(Path("mlflow.db")) == {"a": [1.0, 2.0]}


@pytest.mark.parametrize("what", ["experiment", "run"])
def test_deleted_under_a_stage_that_is_at_work(what: str, capsys: pytest.CaptureFixture[str]) -> None:
    client = mlflow.MlflowClient(mlflow_store.uri())
    with tracking.track("digits", "a", "trial", {"ast.fingerprint": "a"}) as tracker:
        tracker.metrics({"x": 1.0}, 1)
        tracker.flush()
        run_id = tracker.opening.run_id
        assert run_id is not None
        client.delete_experiment("1") if what == "experiment" else client.delete_run(run_id)
        tracker.metrics({"x": 2.0}, 2)
    said = capsys.readouterr().err
    option = "--experiment-id 1" if what == "experiment" else f"--run-id {run_id}"
    assert f"mlflow {what}s restore {option}` brings it back" in said
    client.restore_experiment("1") if what == "experiment" else client.restore_run(run_id)
    session("a", 3.0)
    assert points(Path("mlflow.db")) == {"a": [1.0, 2.0, 3.0]}
    assert not journal.waiting()


def test_a_later_session_of_a_run_waits_behind_an_earlier_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Points of a metric only rise: told out of order, the earlier ones would be lost."""
    with monkeypatch.context() as patch:
        patch.setattr(mlflow_store, "open_row", _refuse)
        session("a", 1.0)
    with monkeypatch.context() as patch:
        patch.setattr(delivery.Delivery, "go_on", _refuse)
        session("a", 2.0)
        assert "an earlier session of a still waits" in capsys.readouterr().err
        session("b")
    assert points(Path("mlflow.db")) == {"b": [1.0]}
    backlog.sync()
    assert points(Path("mlflow.db")) == {"a": [1.0, 2.0], "b": [1.0]}


def _refuse(*_: object) -> None:
    raise OSError(5, "Input/output error", "somewhere")


def test_a_session_that_cannot_be_read_blocks_none(
    go_to: Callable[[str | None], None], capsys: pytest.CaptureFixture[str]
) -> None:
    go_to(DEAD)
    session("a")
    (path,) = journal.waiting()
    (path / journal.LINES).write_text("{")
    go_to(None)
    capsys.readouterr()
    session("b")
    said = capsys.readouterr().err
    assert "Warning" not in said
    assert f"MLflow's backlog: {path} can't be read: remove it" in said
    with pytest.raises(UserError, match=f"^{path} can't be read: remove it"):
        backlog.sync()


def test_a_session_with_a_damaged_line_blocks_none_and_can_be_dropped(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(mlflow_store, "open_row", _refuse)
        session("a")
    (path,) = journal.waiting()
    with (path / journal.LINES).open("a") as lines:
        lines.write("{\n")
    session("b")
    assert points(Path("mlflow.db")) == {"b": [1.0]}
    with pytest.raises(UserError, match=f"a still waits for sqlite:///mlflow.db: {path} can't be read: remove it"):
        backlog.sync()
    backlog.forget("sqlite:///mlflow.db")
    assert journal.waiting() == []
    assert "a: nothing dropped" in capsys.readouterr().err


def test_the_command_line(
    go_to: Callable[[str | None], None], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    go_to(DEAD)
    session("a")
    for words, code, said in (
        ("", 1, f"Error: 1 session still waits for {DEAD}: MLflow at {DEAD} failed"),
        ("--forget htp://x --to htp://y", 1, "--forget drops what waits for a store"),
        ("--to sqlite:///mlflow.db", 0, "sqlite:///mlflow.db: a: 1 point -> run"),
        ("", 0, "nothing waits for MLflow"),
    ):
        monkeypatch.setattr(sys, "argv", ["src.cli", "track-sync", *words.split()])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert (ended.value.code, said in capsys.readouterr().err) == (code, True)
    assert points(Path("mlflow.db")) == {"a": [1.0]}


def broken(how: str) -> None:
    if how == "not a database":
        Path("mlflow.db").write_bytes(b"not a database" * 100)
        return
    revision = {"newer": "ffffffffffff", "older": "0584bdc529eb"}[how]
    with closing(sqlite3.connect("mlflow.db")) as store, store:
        store.execute(f"UPDATE alembic_version SET version_num = '{revision}'")


@pytest.mark.parametrize(
    ("how", "advice"),
    [
        ("newer", r"a newer MLflow than [\d.]+ made it, so install that one"),
        ("older", "an older MLflow made it, so keep a copy of it and run `mlflow db upgrade sqlite:///mlflow.db`"),
        ("not a database", "name another file"),
    ],
)
def test_the_advice_fits_the_trouble(how: str, advice: str) -> None:
    broken(how)
    session("a")
    with pytest.raises(UserError, match=rf"1 session still waits for sqlite:///mlflow.db: .*\): {advice}"):
        backlog.sync()
    assert len(journal.waiting()) == 1


def test_what_a_stage_delivers_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backlog, "TURN_SECONDS", 0.01)
    monkeypatch.setattr(backlog, "_chosen", lambda uri, to: [DEAD])
    with journal.delivery(DEAD, 1.0), pytest.raises(UserError, match=f"a stage at work delivers to {DEAD}: run this again"):
        backlog.forget(DEAD)
