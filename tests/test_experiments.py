"""DVC's experiments: beside each other, queued and in temporary copies, every one in MLflow under its name."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import pytest

from tests.stored import client_of
from tests.test_pipeline import call, repository

__all__ = ["repository"]
pytestmark = pytest.mark.slow

RUN = "digits-ipc1-ast"
LR = f"runs.{RUN}.distill.lr_img"
STEPS = "distill.ast.syn_steps"
SHOWN = ("--only-changed", "--drop", "Created|State|Executor|^src|^params.yaml$|^data/[^m]|^data/metrics$")


def tracked(folder: Path) -> dict[str, Any]:
    """Rows of the repository's store by the experiment that they belong to."""
    found = client_of(folder).search_runs(["1"])
    return {run.data.tags["dvc.experiment"]: run for run in found if "dvc.experiment" in run.data.tags}


def shown(folder: Path) -> list[dict[str, str]]:
    done = call(folder, "dvc", "exp", "show", *SHOWN, "--csv")
    assert done.returncode == 0, done.stderr
    return list(csv.DictReader(io.StringIO(done.stdout)))


def test_a_temporary_copy_and_a_queued_grid_reach_the_store(repository: Path) -> None:
    for words in ("git add .", "git -c user.name=t -c user.email=t@t commit -qm made"):
        assert call(repository, *words.split()).returncode == 0
    done = call(repository, "dvc", "exp", "run", "--temp", "-S", f"{LR}=7.0", "-n", "aside")
    assert done.returncode == 0, done.stdout + done.stderr
    grid = ("-S", f"{LR}=2.0,4.0", "-S", f"{STEPS}=3,5")
    done = call(repository, "dvc", "exp", "run", "--queue", *grid, "-n", "grid")
    assert done.returncode == 0, done.stdout + done.stderr
    done = call(repository, "dvc", "exp", "run", "--run-all", "-j", "1")
    assert done.returncode == 0, done.stdout + done.stderr
    names = {"aside", "grid-1", "grid-2", "grid-3", "grid-4"}
    rows = tracked(repository)
    assert set(rows) == names
    for row in rows.values():
        assert row.info.run_name == RUN
        assert "test_accuracy_mean" in row.data.metrics
        assert row.info.status == "FINISHED"
    found = {(row.data.params["distill.lr_img"], row.data.params["distill.syn_steps"]) for row in rows.values()}
    assert found == {("7.0", "4"), ("2.0", "3"), ("2.0", "5"), ("4.0", "3"), ("4.0", "5")}
    table = shown(repository)
    assert {row["Experiment"] for row in table} >= names
    accuracies = {f"{split}_accuracy_{figure}" for split in ("val", "test") for figure in ("mean", "std")}
    wanted = {f"data/metrics/{RUN}.json:{accuracy}" for accuracy in accuracies} | {LR, STEPS}
    assert set(table[0]) - {"Experiment", "rev", "typ", "parent"} == wanted
