"""A real MLflow server that goes and comes back: nothing is lost or doubled, and no stage waits for it."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest

from src.ground.errors import UserError
from src.store import files
from src.tracking import backlog, journal, mlflow_store
from src.tracking import tracker as tracking
from src.tracking.tracker import Nest, Tracker
from tests.imports import ROOT
from tests.studying import RUN, environment, folder_of, raw_params

pytestmark = pytest.mark.slow


class Server:
    """`mlflow server` on a store of its own, as often as it is started."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.folder, self.uri = folder, f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        words = ("server", "--backend-store-uri", f"sqlite:///{self.folder / 'server.db'}", "--workers", "1")
        words += ("--artifacts-destination", str(self.folder / "served"), "--host", "127.0.0.1", "--port", str(self.port))
        quiet = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "mlflow", *words], env={**os.environ, **quiet}, start_new_session=True,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        for _ in range(600):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            time.sleep(0.1)
        raise TimeoutError

    def signal(self, number: signal.Signals) -> None:
        assert self.process is not None
        os.killpg(self.process.pid, number)

    def kill(self) -> None:
        if self.process is not None:
            self.signal(signal.SIGKILL)
            self.process.wait()
        self.process = None


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    found = Server(tmp_path_factory.mktemp("server"))
    yield found
    found.kill()


@pytest.fixture(autouse=True)
def place(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    for variable in mlflow_store.QUIET:
        monkeypatch.setenv(variable, mlflow_store.QUIET[variable])
    if server.process is None:
        server.start()


def work(tracker: Tracker, steps: range) -> None:
    """What a stage tells."""
    tracker.params({"distill": {"lr_img": 3.0}})
    for step in steps:
        tracker.metrics({"matching_loss": 1.0 / (step + 1)}, step)
        if step % 2 == 0:
            tracker.image("synthetic", np.full((8, 8, 3), step, np.uint8), step)
    tracker.flush()


def close(tracker: Tracker) -> None:
    path = Path("out.csv")
    path.write_text("a,b\n1,2\n")
    tracker.file(path, "distill")
    tracker.output(path)
    tracker.dataset("digits", path, "training")
    tracker.tags({"ast.synthetic": "s"})


def told(experiment: str, name: str) -> dict[str, Any]:
    """All that the store knows of the one run of this name, without what differs from run to run."""
    client = mlflow.MlflowClient(os.environ["MLFLOW_TRACKING_URI"])
    found = client.get_experiment_by_name(experiment)
    assert found is not None
    (run,) = [one for one in client.search_runs([found.experiment_id]) if one.info.run_name == name]
    own = [key for key in run.data.metrics if not key.startswith("system/")]
    listed = {folder: client.list_artifacts(run.info.run_id, folder) for folder in ("images", "distill")}
    return {
        "status": run.info.status,
        "params": run.data.params,
        "tags": {key: value for key, value in run.data.tags.items() if key != "ast.fingerprint"},
        "points": {key: [(p.step, p.value) for p in client.get_metric_history(run.info.run_id, key)] for key in own},
        "images": sorted(Path(file.path).name.split("+timestamp")[0] for file in listed["images"]),
        "files": [(file.path, file.file_size) for file in listed["distill"]],
        "inputs": [(one.dataset.name, one.dataset.digest) for one in run.inputs.dataset_inputs],
    }


def test_a_run_that_lost_its_server_equals_one_that_did_not(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    with tracking.track("whole", "a", "run", {"ast.fingerprint": "f"}) as tracker:
        work(tracker, range(6))
        close(tracker)
    with tracking.track("whole", "a", "run", {"ast.synthetic": "s"}, {"ast.evaluation": "e"}) as tracker:
        tracker.metrics({"test_accuracy_mean": 0.9})

    with tracking.track("broken", "a", "run", {"ast.fingerprint": "f"}) as tracker:
        work(tracker, range(3))
        server.kill()
        start = time.monotonic()
        work(tracker, range(6))
        close(tracker)
    with tracking.track("broken", "a", "run", {"ast.synthetic": "s"}, {"ast.evaluation": "e"}) as tracker:
        tracker.metrics({"test_accuracy_mean": 0.9})
    assert time.monotonic() - start < 20
    said = capsys.readouterr().err
    assert said.count("what it tracks from here on waits for `python -m src.cli track-sync`") == 2  # once a stage
    with pytest.raises(UserError, match="2 sessions still wait"):
        backlog.sync()

    server.start()
    backlog.sync()
    said = capsys.readouterr().err
    assert "1 image, 1 file" in said
    assert said.count("-> run") == 2
    assert told("broken", "a") == told("whole", "a")
    backlog.sync()
    assert "nothing waits" in capsys.readouterr().err
    assert not [path for path in journal.folder().iterdir() if not path.name.startswith(".lock")]


def test_the_next_stage_delivers_and_says_so(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    server.kill()
    with tracking.track("broken", "a", "run", {"ast.fingerprint": "f"}) as tracker:
        work(tracker, range(3))
    server.start()
    capsys.readouterr()
    with tracking.track("broken", "b", "run", {"ast.fingerprint": "g"}):
        assert "MLflow's backlog: a: " in capsys.readouterr().err
    assert not journal.waiting()
    with tracking.track("broken", "b", "run", {"ast.fingerprint": "g"}):
        assert "backlog" not in capsys.readouterr().err


def test_a_delivery_that_is_killed_is_gone_on_with(server: Server) -> None:
    server.kill()
    with tracking.track("killed", "a", "run", {"ast.fingerprint": "f"}) as tracker:
        work(tracker, range(6))
        close(tracker)
    server.start()
    code = "import os; from src.tracking import backlog, mlflow_row\ncount = 0\nknown = mlflow_row.Row.deliver\n"
    code += "def deliver(row, entry):\n    global count\n    count += 1\n    found = known(row, entry)\n"
    code += "    if count == LIMIT: os._exit(9)\n    return found\nmlflow_row.Row.deliver = deliver\nbacklog.sync()"
    for limit in (3, 6):
        words = [sys.executable, "-c", code.replace("LIMIT", str(limit))]
        ended = subprocess.run(words, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, check=False)
        assert ended.returncode == 9, ended.stderr
    backlog.sync()
    found = told("killed", "a")
    assert found["points"]["matching_loss"] == [(s, pytest.approx(1 / (s + 1))) for s in range(6)]
    assert [name.split("+compressed")[0] for name in found["images"]] == [
        f"synthetic+step+{s}" for s in (0, 2, 4) for _ in range(2)
    ]
    assert found["status"] == "FINISHED"


def test_a_stage_killed_while_the_server_was_gone_is_resumed(server: Server) -> None:
    server.kill()
    code = "import os; from src.tracking import tracker as tracking; from tests.test_track_sync import work\n"
    code += "with tracking.track('resumed', 'a', 'run', {'ast.fingerprint': 'f'}) as tracker:\n"
    code += "    work(tracker, range(4)); os._exit(9)"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    ended = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, check=False)
    assert ended.returncode == 9, ended.stderr
    (path,) = journal.waiting()
    with (path / journal.LINES).open("a") as lines:
        lines.write('{"do": "tags", "val')  # what a kill leaves of a line
    with tracking.track("resumed", "a", "run", {"ast.fingerprint": "f"}) as tracker:
        work(tracker, range(6))
    server.start()
    with tracking.track("resumed", "a", "run", {"ast.fingerprint": "f"}) as tracker:  # delivers what waits, then goes on
        work(tracker, range(8))
    found = told("resumed", "a")
    assert [step for step, _ in found["points"]["matching_loss"]] == list(range(8))
    assert found["status"] == "FINISHED"
    assert not journal.waiting()


def test_children_wait_for_their_parent(server: Server) -> None:
    server.kill()
    with tracking.track("studies", "study", "study", {"optuna.study": "s"}) as parent:
        start = time.monotonic()
        with (
            tracking.nested(Nest("studies", parent.opening)),
            tracking.track("x", "trial", "trial", {"optuna.trial": "0"}) as one,
        ):
            one.metrics({"val_accuracy_mean": 0.5})
        assert time.monotonic() - start < 1  # the store is not even asked
        server.start()
        backlog.sync()
        assert len(journal.waiting()) == 1, "the study's own is told as far as it goes, so that its trial finds it"
    backlog.sync()
    client = mlflow.MlflowClient(server.uri)
    found = client.get_experiment_by_name("studies")
    assert found is not None
    rows = {run.info.run_name: run for run in client.search_runs([found.experiment_id])}
    assert rows["trial"].data.tags["mlflow.parentRunId"] == rows["study"].info.run_id


def test_a_server_that_hangs_holds_a_stage_for_seconds_only(server: Server) -> None:
    with tracking.track("hung", "a", "run", {"ast.fingerprint": "f"}) as tracker:
        work(tracker, range(2))
        server.signal(signal.SIGSTOP)
        start = time.monotonic()
        try:
            work(tracker, range(6))
            close(tracker)
        finally:
            server.signal(signal.SIGCONT)
        assert time.monotonic() - start < 20
    backlog.sync()
    assert [step for step, _ in told("hung", "a")["points"]["matching_loss"]] == list(range(6))


def test_what_the_store_refuses_is_said_and_nothing_else_is_lost(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    with tracking.track("refused", "a", "run", {}) as tracker:
        tracker.params({"lr": 1.0})
        tracker.params({"lr": 2.0})
        tracker.metrics({"x": 1.0})
    assert "refused a part of a" in capsys.readouterr().err
    assert told("refused", "a")["points"] == {"x": [(0, 1.0)]}
    assert not journal.waiting()


def test_distilling_without_its_server_and_strictly(
    server: Server, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command line: the server is killed half-way, the stage ends as ever; a strict one ends, and goes on later."""
    folder = tmp_path_factory.mktemp("distilled")
    raw = raw_params()
    raw["runs"][RUN]["distill"] |= {"iterations": 300, "snapshot_every": 150}
    folder_of(folder, raw)
    words = [sys.executable, "-m", "src.cli", "distill", "--run", RUN]
    variables = {**environment(folder), "MLFLOW_TRACKING_URI": server.uri}
    assert subprocess.run([*words[:3], "experts"], cwd=folder, env=variables, check=False).returncode == 0
    monkeypatch.setenv("DVC_ROOT", str(folder))
    digests = []
    for options, code, said in (
        ((), 0, "waits for `python -m src.cli track-sync`"),
        (("--strict-tracking",), 1, "Stopped: MLflow"),
    ):
        stage = subprocess.Popen([*words, *options], cwd=folder, env=variables, stderr=subprocess.PIPE, text=True)
        while not running(server, "digits", RUN):
            time.sleep(0.2)
        server.kill()
        start = time.monotonic()
        errors = stage.communicate(timeout=200)[1]
        print(f"{options}: the stage ended {time.monotonic() - start:.1f} s after its server")
        assert (stage.returncode, errors.count(said), "Traceback" in errors) == (code, 1, False), errors
        server.start()
        if not code:
            done = subprocess.run(
                [*words[:3], "track-sync"], cwd=folder, env=variables, capture_output=True, text=True, check=False
            )
            assert done.returncode == 0, done.stderr
        else:
            again = subprocess.run(words, cwd=folder, env=variables, stderr=subprocess.PIPE, text=True, check=False)
            assert "resumed at iteration" in again.stderr
        found = told("digits", RUN)
        assert [step for step, _ in found["points"]["matching_loss"]] == list(range(300))
        assert (found["status"], len(found["images"])) == ("FINISHED", 6)
        digests.append(files.digest(folder / "data/distill" / RUN))
        client = mlflow.MlflowClient(server.uri)
        client.delete_run(row(server, "digits", RUN).info.run_id)
        shutil.rmtree(folder / "data/distill")
    assert digests[0] == digests[1]


def row(server: Server, experiment: str, name: str) -> Any:
    client = mlflow.MlflowClient(server.uri)
    found = client.get_experiment_by_name(experiment)
    runs = client.search_runs([found.experiment_id]) if found else []
    return next((one for one in runs if one.info.run_name == name), None)


def running(server: Server, experiment: str, name: str) -> bool:
    found = row(server, experiment, name)
    return found is not None and "matching_loss" in found.data.metrics
