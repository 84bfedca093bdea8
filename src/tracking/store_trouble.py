"""What is wrong with a tracking store, in one sentence: what failed, and what helps against just that."""

from __future__ import annotations

import re
import shlex
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

from src.ground.errors import UserError, lacking

SCHEMA = re.compile(r"found version (\w+), but expected")


class DeletedError(Exception):
    """An experiment or a run is marked as deleted in the store."""

    def __init__(self, kind: str, name: str, option: str):
        self.kind, self.name, self.option = kind, name, option
        super().__init__(f"the {kind} '{name}' is deleted")


class FolderGoneError(Exception):
    """A folder of the store's is not there: MLflow would make it, in the place of one that was moved or is not mounted."""

    def __init__(self, folder: Path):
        super().__init__(f"its folder {folder} is not there")


class HeldError(Exception):
    """A session can't be delivered before another one."""


def sentence(error: Exception, store: str) -> str:
    """The store is blamed only where it is at fault."""
    if isinstance(error, HeldError | UserError):
        return str(error)
    if isinstance(error, ModuleNotFoundError):
        return lacking(error)
    if isinstance(error, FolderGoneError):
        return f"MLflow at {store}: {error}, so make it, mount it, or name another store"
    if isinstance(error, DeletedError):
        command = f"MLFLOW_TRACKING_URI={shlex.quote(store)} mlflow {error.kind}s restore {error.option}"
        return f"MLflow at {store}: the {error.kind} '{error.name}' is deleted, and `{command}` brings it back"
    if isinstance(error, OSError) and isinstance(error.filename, str):
        return f"{error.filename} can't be used ({error.strerror}): free space or permit access there"
    return f"MLflow at {store} failed ({first(error)}): {_remedy(str(error), store)}"


def _remedy(text: str, store: str) -> str:
    schema = SCHEMA.search(text)
    if schema and _is_known(schema[1]):
        return f"an older MLflow made it, so keep a copy of it and run `mlflow db upgrade {shlex.quote(store)}`"
    if schema:
        return f"a newer MLflow than {version('mlflow')} made it, so install that one"
    remedies = {
        "database is locked": "end the process that holds it, or wait for its end",
        "readonly database": "permit writing there",
        "unable to open database file": "permit reading and writing there",
        "not a database": "name another file",
        "unsupported URI": "name a server as http://HOST:PORT, or a file as sqlite:///FILE",
        "No space left": "free space there",
    }
    return next((remedy for words, remedy in remedies.items() if words in text), "start it, or name another one")


def _is_known(revision: str) -> bool:
    """Whether the MLflow that is installed can go on from this revision of a database."""
    spec = find_spec("mlflow")
    assert spec is not None and spec.origin is not None
    return any(Path(spec.origin).parent.glob(f"store/db_migrations/versions/{revision}_*.py"))


def first(error: Exception) -> str:
    """The beginning of its text, in one line; of a database's without the query."""
    return " ".join(str(error).partition("[SQL")[0].split())[:200] or type(error).__name__
