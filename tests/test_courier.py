"""The courier: it delivers beside the stages and in order, says through them what went wrong, and goes."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import mlflow
import pytest

from src.ground.errors import TrackingError
from src.tracking import backlog, courier, delivery, journal, mlflow_store, stores
from src.tracking import tracker as tracking
from src.tracking.tracker import Nest
from tests.imports import ROOT


@pytest.fixture
def checkout(tmp_path: Path, fill: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "old"
    folder.mkdir()
    fill(folder / "mlflow.db")
    enter(folder, monkeypatch)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    for variable, value in mlflow_store.QUIET.items():
        monkeypatch.setenv(variable, value)
    monkeypatch.setattr(tracking, "apart", True)
    return folder


@pytest.fixture
def started(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Couriers run only where the test calls them, and go soon."""
    monkeypatch.setattr(courier, "ensure", lambda: None)
    monkeypatch.setattr(courier, "IDLE_SECONDS", 0.3)
    monkeypatch.setattr(courier, "POLL_SECONDS", 0.1)


def enter(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setenv("DVC_ROOT", str(folder))


def track(name: str, step: int = 0) -> None:
    with tracking.track("digits", name, "trial", {"ast.fingerprint": name}) as tracker:
        tracker.metrics({"x": float(step)}, step)


def points() -> dict[str, list[int]]:
    client = mlflow.MlflowClient(mlflow_store.uri())
    runs = client.search_runs([found.experiment_id for found in client.search_experiments()])
    return {str(run.info.run_name): [point.step for point in client.get_metric_history(run.info.run_id, "x")] for run in runs}


def delivered() -> None:
    """Wait for the courier."""
    for _ in range(300):
        if not journal.waiting():
            return
        time.sleep(0.1)
    raise TimeoutError


def test_that_of_a_moved_checkout_does_not_make_the_old_one_again(
    checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    track("one")
    delivered()
    new = tmp_path / "new"
    checkout.rename(new)
    enter(new, monkeypatch)
    track("two")
    delivered()
    assert not checkout.exists()
    assert points() == {"one": [0], "two": [0]}


def test_a_stage_imports_no_mlflow(checkout: Path) -> None:
    code = "import sys; from src.tracking import courier, tracker as tracking\ncourier.ensure = lambda: None\n"
    code += "with tracking.track('digits', 'a', 'run', {}) as tracker: tracker.metrics({'x': 1.0})\n"
    code += "print(*[name for name in ('mlflow', 'matplotlib', 'sqlalchemy') if name in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{code}"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert (done.stdout.split(), done.stderr) == ([], "")
    assert len(journal.waiting()) == 1


def test_sessions_of_a_run_and_of_its_children_go_in_order(started: None) -> None:
    track("a", 1)
    with tracking.track("digits", "study", "study", {}) as study:
        with tracking.nested(Nest("digits", study.opening)):
            track("trial", 3)
        track("a", 2)
        backlog.sync()  # the study is told as far as it goes, so that its trial finds it
        assert [opening.name for _, opening in journal.sessions()] == ["study"]
    courier.main()
    assert journal.waiting() == []
    assert points() == {"a": [1, 2], "study": [], "trial": [3]}
    client = mlflow.MlflowClient(mlflow_store.uri())
    runs = {run.info.run_name: run for run in client.search_runs(["1"])}
    assert runs["trial"].data.tags["mlflow.parentRunId"] == runs["study"].info.run_id
    assert {run.info.status for run in runs.values()} == {"FINISHED"}


def test_what_the_store_can_not_take_is_noted_once_and_keeps_no_courier(
    started: None, capsys: pytest.CaptureFixture[str]
) -> None:
    track("one")
    courier.main()
    client = mlflow.MlflowClient(mlflow_store.uri())
    client.delete_experiment("1")
    track("two")
    with tracking.track("letters", "three", "trial", {}) as tracker:
        tracker.metrics({"x": 7.0}, 7)
    assert capsys.readouterr().err == ""
    courier.main()
    track("four")
    track("five")
    said = capsys.readouterr().err
    assert said.count("two is not tracked yet: MLflow at sqlite:///mlflow.db: the experiment 'digits' is deleted, and") == 1
    assert points() == {"three": [7]}
    client.restore_experiment("1")
    courier.main()
    assert points() == {"one": [0], "two": [0], "three": [7], "four": [0], "five": [0]}


def test_a_store_that_fails_is_said_by_the_next_stage(started: None, capsys: pytest.CaptureFixture[str]) -> None:
    Path("mlflow.db").write_bytes(b"not a database" * 100)
    track("one")
    courier.main()
    track("two")
    said = capsys.readouterr().err
    assert said.count("not a database") == said.count(": name another file; what stages track waits for") == 1
    assert len(journal.waiting()) == 2


def test_a_courier_at_work_holds_up_what_is_strict_for_a_while_only(started: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may have sessions that the store can't take, while another stage is at work for hours."""
    monkeypatch.setattr(delivery, "TURN_SECONDS", 0.2)
    track("other")
    track("a")
    with journal.delivery(stores.OWN, 1.0), tracking.strictly(True):
        track("b")
        with pytest.raises(TrackingError, match=r"an earlier session of a still waits \(another process delivers it\)"):
            track("a", 2)
    assert points() == {"b": [0]}
