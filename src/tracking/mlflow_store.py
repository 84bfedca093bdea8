"""MLflow's stores: opened, asked for the run of a session, and served. With `mlflow_row` all that imports mlflow."""

from __future__ import annotations

import getpass
import logging
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from filelock import FileLock

from src.ground.errors import UserError
from src.ground.host import workspace
from src.store import files
from src.tracking import mlartifacts, mlflow_row, store_trouble, stores
from src.tracking.journal import Opening
from src.tracking.mlflow_row import Row
from src.tracking.store_trouble import FolderGoneError

QUIET = {
    # without these an unreachable server holds every call for four minutes, one that hangs for twenty
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "5",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
}
SQL_ATTEMPTS = 4  # to open a database, in a second; MLflow's ten hold a session for a hundred seconds


def uri() -> str:
    """MLFLOW_TRACKING_URI, or else the sqlite file in the repository's top folder."""
    return stores.address(stores.current())


def surroundings() -> dict[str, str]:
    """Tags that MLflow gives every new run: the user, the program, the commit. Without its own import, which takes seconds."""
    program = Path(sys.argv[0])
    inside = program.is_absolute() and program.is_relative_to(Path.cwd())
    found = {
        "mlflow.source.name": str(program.relative_to(Path.cwd()) if inside else program.name),
        "mlflow.source.type": "LOCAL",
    }
    try:
        found["mlflow.user"] = getpass.getuser()
        commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    except (OSError, KeyError):  # no git here, or a user without a name
        commit = ""
    return found | ({"mlflow.source.git.commit": commit} if commit else {})


def open_row(opening: Opening) -> Row:
    """The run that a session goes on in, made with its parent where there is none. Raises whatever keeps the store from it."""
    client = _client(opening.store)
    experiment_id = _experiment(client, opening.store, opening.experiment)
    known = _known(client, experiment_id, opening)
    tags = {**opening.identity, **opening.add, **{k: v for k, v in opening.about.items() if k.startswith("dvc.")}}
    if known is None:
        tags |= opening.about
        if opening.parent is not None:
            tags["mlflow.parentRunId"] = _known(client, experiment_id, opening.parent) or _made(opening.parent)
        return _row(client, opening, client.create_run(experiment_id, opening.start, tags, opening.name))
    client.update_run(known, status="RUNNING")
    run = client.get_run(known)
    row = _row(client, opening, run)
    row.tags(tags)
    row.recall(run.data._metric_objs)  # with steps and times, in one request
    return row


def _made(parent: Opening) -> str:
    """A run for the children alone: its own session was for another store, or it was deleted since."""
    row = open_row(parent)
    row.end("KILLED")
    return row.run_id


def _row(client: Any, opening: Opening, run: Any) -> Row:
    if not run.info.run_id:  # another web server may answer all that it is asked with success
        raise ConnectionError("what answers there is no MLflow")
    folder = mlartifacts.folder(opening.store, run.info.artifact_uri)
    return Row(replace(opening, run_id=run.info.run_id), run.info.run_id, client, folder)


def _known(client: Any, experiment_id: str, opening: Opening) -> str | None:
    """Id of the session's run: the one it was told, unless that was deleted since; or the newest that its tags describe."""
    if opening.run_id is not None:
        from mlflow.exceptions import MlflowException

        try:
            if client.get_run(opening.run_id).info.lifecycle_stage == "active":
                return opening.run_id
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
    return mlflow_row.search(client, experiment_id, opening.identity, opening.add)


def _experiment(client: Any, store: str, name: str) -> str:
    """The experiment's id."""
    with _lock():
        found = client.get_experiment_by_name(name)
        if found:
            mlflow_row.check(found)
            return str(found.experiment_id)
        # the kind decides which of its views the UI opens first
        kind = {"mlflow.experimentKind": "custom_model_development"}
        made = str(client.create_experiment(name, artifact_location=mlartifacts.location(store, name), tags=kind))
        _mend(store)
        return made


def _client(store: str) -> Any:
    """MLflow's client of a store, which is made where it is not there, and names no place outside where it travels.

    Raises FolderGoneError where a sqlite file's folder is gone.
    """
    quieten()
    import mlflow.store.db.utils
    from mlflow import MlflowClient

    mlflow.store.db.utils.MAX_RETRY_COUNT = SQL_ATTEMPTS
    file = stores.sqlite_file(store)
    if file is not None and not file.parent.is_dir():
        raise FolderGoneError(file.parent)
    with _lock():
        if file is not None and not file.exists():
            files.write_atomically(file, fill)
        client = MlflowClient(stores.address(store))
        _mend(store)
    return client


def fill(file: Path) -> None:
    """Make MLflow's tables in a file, of which nobody knows yet.

    They come in dozens of migrations with hundreds of statements. Where MLflow makes them, sqlite waits for the disk after
    each: for five seconds on a virtual machine, where this takes one.
    """
    import sqlalchemy
    from mlflow.store.db import utils

    engine = sqlalchemy.create_engine(f"{stores.SQLITE}{file}")
    sqlalchemy.event.listen(engine, "connect", lambda connection, _: connection.execute("PRAGMA synchronous = OFF"))
    try:
        utils._initialize_tables(engine)
    finally:
        engine.dispose()


def _mend(store: str) -> None:
    file = stores.sqlite_file(store)
    if file is not None and stores.travels(store):
        mlartifacts.mend(file)


def probe(store: str) -> None:
    """Raises what is wrong where the store can't be asked anything."""
    _client(store).search_experiments(max_results=1)


def _lock() -> FileLock:
    """Held by whoever may be the first: processes that create a fresh sqlite store together destroy it."""
    return FileLock(workspace() / ".mlflow.lock")


def quieten() -> None:
    """Bound the store's waits, and leave it to this project's one sentence to say what failed."""
    for variable, value in QUIET.items():
        os.environ.setdefault(variable, value)
    for library in ("mlflow", "alembic", "urllib3"):
        logging.getLogger(library).setLevel(logging.CRITICAL)


def load() -> None:
    """Take the memory that tracking takes, as a plan of a stage's memory must."""
    import mlflow
    import mlflow.store.tracking.sqlalchemy_store  # noqa: F401


def serve(port: int) -> None:
    """Replace this process by the MLflow UI on this machine's loopback address, with two processes instead of fifteen.

    Raises UserError where the store can't be opened, or is a server itself.
    """
    store = stores.current()
    if store.startswith("http"):
        raise UserError(f"MLFLOW_TRACKING_URI names a server, which has a UI of its own: open {store} in a browser")
    os.environ.update(QUIET, MLFLOW_SERVER_ENABLE_JOB_EXECUTION="false")
    try:
        probe(store)
    except Exception as error:  # in whatever way a store may fail
        raise UserError(store_trouble.sentence(error, store)) from None
    os.chdir(workspace())  # from where MLflow takes the places of artifacts
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", stores.address(store), "-w", "1"]
    os.execv(sys.executable, [*command, "--host", "127.0.0.1", "--port", str(port)])
