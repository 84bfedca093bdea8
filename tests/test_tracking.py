"""Tracking against a real sqlite store: one row a run, no point twice, and never a failed stage."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlflow
import numpy as np
import pytest

from src.ground.errors import TrackingError
from src.store.files import digest
from src.tracking import backlog, journal, mlflow_row, mlflow_store, system_metrics
from src.tracking import tracker as tracking
from tests.imports import ROOT


@pytest.fixture(autouse=True)
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    for variable in mlflow_store.QUIET:
        monkeypatch.setenv(variable, mlflow_store.QUIET[variable])
    return mlflow_store.uri()


@pytest.mark.parametrize("name", ["a", "without the experts' parts"])
def test_the_same_work_goes_on_in_the_same_row(store: str, name: str) -> None:
    picture = np.zeros((4, 4, 3), np.uint8)
    for steps in (range(3), range(5)):
        with tracking.track("digits", name, "run", {"ast.fingerprint": "f"}) as tracker:
            tracker.params({"distill": {"lr_img": 3.0}})
            for step in steps:
                tracker.metrics({"matching_loss": 1.0 / (step + 1), "bad": float("nan")}, step)
                tracker.image("synthetic", picture, step)
    client = mlflow.MlflowClient(store)
    experiment = client.get_experiment_by_name("digits")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    history = client.get_metric_history(run.info.run_id, "matching_loss")
    assert sorted((point.step, point.value) for point in history) == [(s, pytest.approx(1 / (s + 1))) for s in range(5)]
    assert "bad" not in run.data.metrics
    assert run.data.params == {"distill.lr_img": "3.0"}
    assert run.info.status == "FINISHED"
    pictures = [f.path for f in client.list_artifacts(run.info.run_id, "images") if f.path.endswith(".png")]
    assert len(pictures) == 5


def test_other_work_is_another_row_and_failure_is_seen(store: str) -> None:
    with pytest.raises(ZeroDivisionError), tracking.track("digits", "a", "run", {"ast.fingerprint": "f"}):
        _ = 1 / 0
    with tracking.track("digits", "a", "run", {"ast.fingerprint": "g"}):
        pass
    client = mlflow.MlflowClient(store)
    experiment = client.get_experiment_by_name("digits")
    assert experiment is not None
    states = {run.data.tags["ast.fingerprint"]: run.info.status for run in client.search_runs([experiment.experiment_id])}
    assert states == {"f": "FAILED", "g": "FINISHED"}


def test_another_evaluation_of_the_same_set_is_another_row(store: str) -> None:
    def evaluate(protocol: str, accuracy: float) -> None:
        with tracking.track("digits", "a", "run", {"ast.synthetic": "s"}, {"ast.evaluation": protocol}) as tracker:
            tracker.params({"evaluate": {"epochs": protocol}})
            tracker.metrics({"test_accuracy_mean": accuracy})

    with tracking.track("digits", "a", "run", {"ast.fingerprint": "f"}) as tracker:
        tracker.tags({"ast.synthetic": "s"})
    evaluate("1000", 0.9)
    evaluate("10", 0.5)
    evaluate("1000", 0.9)
    rows = mlflow.MlflowClient(store).search_runs(["1"])
    found = {
        row.data.tags["ast.evaluation"]: (row.data.metrics["test_accuracy_mean"], "ast.fingerprint" in row.data.tags)
        for row in rows
    }
    assert found == {"1000": (0.9, True), "10": (0.5, False)}


def test_outputs_and_inputs_carry_dvcs_digest(store: str) -> None:
    path = Path("data.bin")
    path.write_bytes(b"tensor")
    with tracking.track("digits", "a", "run", {}) as tracker:
        tracker.output(path)
        tracker.dataset("digits", path, "training")
    (run,) = mlflow.MlflowClient(store).search_runs(["1"])
    assert run.data.tags["dvc.data.bin"] == digest(path)
    assert [(entry.dataset.name, entry.dataset.digest) for entry in run.inputs.dataset_inputs] == [("digits", digest(path))]


def test_an_unreachable_server_does_not_fail_the_stage(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    with tracking.track("digits", "a", "run", {}) as tracker:
        tracker.metrics({"x": 1.0})
        tracker.flush()
        tracker.tags({"x": "y"})
    assert capsys.readouterr().err.count("Warning: MLflow at http://127.0.0.1:9 failed") == 1


@pytest.mark.parametrize("apart", [True, False])
def test_processes_that_meet_a_fresh_store_together(apart: bool, store: str) -> None:
    code = f"import sys; from src.tracking import tracker as tracking\ntracking.apart = {apart}\n"
    code += "with tracking.track('digits', sys.argv[1], 'run', {}): pass"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", code]
    workers = [subprocess.Popen([*command, str(i)], env=environment, stderr=subprocess.PIPE, text=True) for i in range(3)]
    errors = [worker.communicate()[1] for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0, 0]
    assert not [error for error in errors if "Warning" in error]
    for _ in range(300):  # the courier
        if not journal.waiting():
            break
        time.sleep(0.1)
    assert len(mlflow.MlflowClient(store).search_runs(["1"])) == 3


def test_strict_tracking_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    with (
        tracking.strictly(True),
        pytest.raises(TrackingError, match=r"MLflow at http://127.0.0.1:9 failed .* tracking is to be strict"),
        tracking.track("strict", "a", "run", {}),
    ):
        raise AssertionError("the stage began")
    assert not journal.waiting()


def test_a_full_disk_is_said(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(journal.Journal, "_append", full)
    with tracking.track("full", "a", "run", {}) as tracker:
        tracker.metrics({"x": 1.0})
    assert capsys.readouterr().err.count("what MLflow is to be told can't be kept") == 1


def test_the_machine_is_sampled_and_no_sample_comes_twice(store: str) -> None:
    for seconds in (1.2, 0.1):
        with tracking.track("digits", "a", "run", {}):
            time.sleep(seconds)
    client = mlflow.MlflowClient(store)
    (run,) = client.search_runs(["1"])
    points = client.get_metric_history(run.info.run_id, "system/cpu_utilization_percentage")
    assert [point.step for point in points] == list(range(len(points)))
    assert len({point.timestamp for point in points}) == len(points) >= 3
    assert "system/system_memory_usage_megabytes" in run.data.metrics


def test_no_space_for_artifacts(store: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    path = Path("out.csv")
    path.write_text("a,b\n")

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch, tracking.track("digits", "a", "run", {}) as tracker:
        patch.setattr(mlflow_row.shutil, "copyfile", full)
        tracker.file(path, "distill")
        tracker.metrics({"x": 1.0})
    assert capsys.readouterr().err.count("No space left on device") == 1
    backlog.sync()
    client = mlflow.MlflowClient(store)
    (run,) = client.search_runs(["1"])
    assert run.data.metrics["x"] == 1.0
    assert [file.path for file in client.list_artifacts(run.info.run_id, "distill")] == ["distill/out.csv"]


@pytest.mark.slow
def test_a_locked_database_is_waited_for_once(store: str, capsys: pytest.CaptureFixture[str]) -> None:
    """MLflow's own wait for a lock is 20 seconds."""
    with tracking.track("digits", "a", "run", {"ast.fingerprint": "f"}) as tracker:
        tracker.tags({"before": "the lock"})
        lock = sqlite3.connect("mlflow.db", isolation_level=None)
        lock.execute("BEGIN EXCLUSIVE")
        start = time.monotonic()
        for step in range(3):
            tracker.metrics({"x": float(step)}, step)
            tracker.flush()
    assert time.monotonic() - start < 40
    lock.execute("ROLLBACK")
    assert "locked" in (said := capsys.readouterr().err)
    assert ": end the process that holds it, or wait for its end; this stage goes on" in said
    backlog.sync()
    (run,) = mlflow.MlflowClient(store).search_runs(["1"])
    assert (run.data.metrics["x"], run.info.status) == (2.0, "FINISHED")


def test_a_gpu_that_lacks_a_figure_has_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """A part of one (MIG) has no utilisation."""

    def missing(card: object) -> None:
        raise system_metrics.pynvml.NVMLError(system_metrics.pynvml.NVML_ERROR_NOT_SUPPORTED)

    monkeypatch.setattr(system_metrics.pynvml, "nvmlDeviceGetMemoryInfo", lambda card: SimpleNamespace(used=1e6, total=4e6))
    monkeypatch.setattr(system_metrics.pynvml, "nvmlDeviceGetUtilizationRates", missing)
    monkeypatch.setattr(system_metrics.pynvml, "nvmlDeviceGetPowerUsage", missing)
    found = system_metrics._figures([object()])
    own = {name: value for name, value in found.items() if "gpu" in name}
    assert own == {"system/gpu_0_memory_usage_percentage": 25.0, "system/gpu_0_memory_usage_megabytes": 1.0}
