"""What dvc.lock says of a stage."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from src.store import files

FOLDER = "resolved"  # of data/, where the stage `resolve` writes what the others depend on


def stages() -> Mapping[str, Any]:
    """All that DVC has run in the working folder, by STAGE@NAME; nothing where it has run none."""
    path = Path("dvc.lock")
    try:
        return dict(YAML(typ="safe").load(path.read_text(encoding="utf-8"))["stages"]) if path.exists() else {}
    except (YAMLError, KeyError, TypeError):  # of which DVC itself will tell
        return {}


def digest(entry: Mapping[str, Any], place: Path) -> str | None:
    """That of a file at the stage's last run; None where the stage did not depend on it."""
    return next((dep["md5"] for dep in entry["deps"] if dep["path"] == place.as_posix()), None)


def place(data: Path, stage: str, name: str) -> Path:
    """Of the file that holds the settings and the code's digest of a stage."""
    return data / FOLDER / stage / f"{name}.json"


def is_outdated(data: Path, stage: str, name: str) -> bool:
    """Whether DVC ran the stage by other settings or code than were resolved last; not so where it never ran it."""
    path, entry = place(data, stage, name), stages().get(f"{stage}@{name}")
    return entry is not None and path.exists() and digest(entry, path) != files.digest(path)
