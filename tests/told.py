"""What a repository's own store was told by stages that ran in processes of their own, once the courier has come."""

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


def files_of(folder: Path, run: Any, below: str) -> list[str]:
    """Names of the files in a folder of a run's artifacts, whose place is relative to the repository's top."""
    return sorted(path.name for path in (folder / run.info.artifact_uri / below).iterdir())
