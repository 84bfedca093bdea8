"""Where files and pictures of runs lie: a store that travels with the repository names places from the repository's top.

`mlartifacts/EXPERIMENT/RUN/artifacts` is read by MLflow from where its process runs, and by this project from the top. MLflow
makes every path absolute when it creates an experiment, as do stores of earlier versions: both are mended.
"""

from __future__ import annotations

import os
import re
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path
from urllib.parse import unquote, urlsplit

from src.ground.host import workspace
from src.store import files
from src.tracking import stores
from src.tracking.store_trouble import FolderGoneError

FOLDER = "mlartifacts"
OURS = re.compile(rf"/.*?((?:{FOLDER}|mlruns)/[^/]+(?:/[0-9a-f]{{32}}/artifacts)?)")  # chosen by this module, or by MLflow
COLUMNS = (("experiments", "experiment_id", "artifact_location"), ("runs", "run_uuid", "artifact_uri"))
LOCK_SECONDS = 20.0  # that MLflow waits, too


def location(store: str, experiment: str) -> str | None:
    """The artifacts' place of a new experiment: in the repository, beside a file elsewhere; None where a server decides."""
    file = stores.sqlite_file(store)
    if file is None:
        return None
    return ((workspace() if stores.travels(store) else file.parent) / FOLDER / experiment).as_uri()


def folder(store: str, uri: str) -> Path | None:
    """The folder of a run's artifacts that lie in this repository; None where it is for MLflow to know.

    Raises FolderGoneError where they lie in a folder of a place that is gone.
    """
    parts = urlsplit(uri)
    if parts.scheme not in ("", "file"):
        return None
    path = Path(unquote(parts.path))
    if not path.is_absolute():
        return workspace() / path if stores.travels(store) else None
    place = path.parents[min(3, len(path.parents) - 1)]  # without MLARTIFACTS/EXPERIMENT/RUN/artifacts
    if not place.is_dir():
        raise FolderGoneError(place)
    return None


def mend(file: Path) -> None:
    """Make the places in a store inside the repository relative to its top, and take in files from where they were before.

    Places that lie elsewhere by their user's choice stay there.
    """
    with closing(sqlite3.connect(file, timeout=LOCK_SECONDS)) as store:
        found = [(table, key, column, *row) for table, key, column in COLUMNS for row in _absolute(store, table, key, column)]
        for table, *_, old, path in found:
            if table == "runs":
                _gather(Path(old), workspace() / path)
        with store:
            for table, key, column, identity, _, path in found:
                store.execute(f"UPDATE {table} SET {column} = ? WHERE {key} = ?", (path, identity))


def _absolute(store: sqlite3.Connection, table: str, key: str, column: str) -> list[tuple[str | int, str, str]]:
    """Key, old folder, and path from the repository's top, of places that this project or MLflow chose."""
    rows = store.execute(f"SELECT {key}, {column} FROM {table} WHERE {column} LIKE 'file:%' OR {column} LIKE '/%'")
    places = ((identity, unquote(urlsplit(uri).path)) for identity, uri in rows)
    return [(identity, old, match[1]) for identity, old in places if (match := OURS.fullmatch(old))]


def _gather(old: Path, new: Path) -> None:
    """Take in what earlier versions wrote into the old place, after the repository had been moved away from it."""
    for place, _, names in os.walk(old):
        for source in (Path(place, name) for name in names):
            target = new / source.relative_to(old)
            if not target.exists():
                _copy(source, target)


def _copy(source: Path, target: Path) -> None:
    def write(file: Path) -> None:
        shutil.copyfile(source, file)

    files.write_atomically(target, write)
