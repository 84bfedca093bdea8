"""What a repository's own store holds of stages that ran in processes of their own, and the files of its runs."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import mlflow


def client_of(folder: Path, seconds: float = 60.0) -> mlflow.MlflowClient:
    """A client of the store of the repository in `folder`, after all that waited for it is delivered."""
    end = time.monotonic() + seconds
    while any((folder / ".cache/tracking").glob("[0-9]*")):
        assert time.monotonic() < end, "the courier did not come"
        time.sleep(0.1)
    return mlflow.MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")


def kept(top: Path, run: Any, folder: str = "") -> list[str]:
    """Paths of the run's files, from its own folder on."""
    uri = run.info.artifact_uri
    assert uri.startswith("mlartifacts/")
    return sorted(path.relative_to(top / uri).as_posix() for path in (top / uri / folder).rglob("*") if path.is_file())
