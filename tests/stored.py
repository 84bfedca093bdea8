"""What lies in a repository's folder of a run's files and pictures, which its store names from the repository's top."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def kept(top: Path, run: Any, folder: str = "") -> list[str]:
    """Paths of the run's files, from its own folder on."""
    uri = run.info.artifact_uri
    assert uri.startswith("mlartifacts/")
    return sorted(path.relative_to(top / uri).as_posix() for path in (top / uri / folder).rglob("*") if path.is_file())
