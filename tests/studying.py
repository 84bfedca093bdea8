"""What the tests of studies share: a folder with the repository's code and tiny parameters, and prepared digits."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from tests.imports import ROOT
from tests.test_pipeline import tiny

RUN = "digits-ipc1-ast"
TUNE = {"epochs": 10, "students": 2, "rungs": 2}
QUIET = {"MLFLOW_DISABLE_TELEMETRY": "true", "PYTHONDONTWRITEBYTECODE": "1", "COLUMNS": "200"}


def environment(folder: Path) -> dict[str, str]:
    """One thread a process, no variables of the caller's own tracking, this repository's code."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("DVC_", "MLFLOW_"))}
    return {**kept, **QUIET, "PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"}


def call(folder: Path, words: str) -> subprocess.CompletedProcess[str]:
    """A command of this repository, run in the folder."""
    command = [sys.executable, "-m", "src.cli", *words.split()]
    return subprocess.run(command, cwd=folder, env=environment(folder), capture_output=True, text=True, check=False)


def raw_params(**tune: Any) -> dict[str, Any]:
    """The repository's parameters cut down to seconds, with a study's settings."""
    raw: dict[str, Any] = tiny(YAML(typ="safe").load((ROOT / "params.yaml").read_text(encoding="utf-8")))
    raw["runtime"] |= {"threads": 1, "workers": 1}
    raw["experts"]["digits-smooth"] |= {"gradient_penalty": 0.0, "batch_size": 256}
    raw["tune"] = {**TUNE, **tune}
    return raw


def folder_of(path: Path, raw: dict[str, Any]) -> Path:
    """A repository's top with prepared digits."""
    (path / "src").symlink_to(ROOT / "src", target_is_directory=True)
    YAML(typ="safe").dump(raw, path / "params.yaml")
    shutil.rmtree(path / "data", ignore_errors=True)
    done = call(path, "prepare")
    assert done.returncode == 0, done.stderr
    return path
