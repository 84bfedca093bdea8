"""The MLflow store, and what an entry of tracking means in it. The only module that imports mlflow.

Whatever is delivered twice is there once: points and pictures go by their step, the rest takes the place of the same.

The repository's own store travels with its folder, so that it holds no absolute path: artifacts lie at `mlartifacts/...`, which
MLflow takes from where its process runs, and this module from the repository's top.
"""

from __future__ import annotations

import getpass
import logging
import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

from filelock import FileLock

from src.ground.errors import UserError
from src.ground.runtime import workspace
from src.io.journal import Entry, Opening

QUIET = {
    # without these an unreachable server holds every call for four minutes, one that hangs for twenty
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "5",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
}
SYSTEM = "system/"  # metrics of the machine: the UI shows them on a page of their own
DATABASE = "mlflow.db"
LOCK_SECONDS = 20.0  # that MLflow waits, too
SQL_ATTEMPTS = 4  # to open a database, in a second; MLflow's ten hold a session for a hundred seconds
ARTIFACTS = "mlartifacts"


class NoParentError(Exception):
    """The run that a run belongs to is not in the store yet."""


class DeletedExperimentError(UserError):
    """Runs can't be added to it; all else of its store goes on."""


def uri(store: str | None = None) -> str:
    """Where a store is; None is the repository's own, the sqlite file in its top folder."""
    return store or f"sqlite:///{workspace() / DATABASE}"


def chosen() -> str | None:
    """The store that MLFLOW_TRACKING_URI names; None where it is not set, or names the repository's own."""
    return spelled(os.environ.get("MLFLOW_TRACKING_URI", ""))


def spelled(asked: str) -> str | None:
    """A store's address in one spelling; None for the repository's own."""
    address = asked.rstrip("/")
    path = address.removeprefix("sqlite:///")
    own = address.startswith("sqlite:///") and (workspace() / path).resolve() == workspace() / DATABASE
    return None if own or not address else address


def title(store: str | None) -> str:
    """What sentences call a store."""
    return store or f"this repository's own store, {DATABASE},"


def refused(error: Exception) -> bool:
    """Whether the store is there, and will never take this."""
    return getattr(error, "error_code", "") == "INVALID_PARAMETER_VALUE"


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


@dataclass
class Row:
    """A run of the store that is open."""

    opening: Opening
    run_id: str
    _client: Any
    _last: dict[str, tuple[int, int]] = field(default_factory=dict)  # metric -> step and time of its last point
    _images: dict[str, bool] = field(default_factory=dict)  # file name without ending -> whether its thumbnail is there
    _folder: Path | None = None  # of its artifacts, where they lie in this repository

    def deliver(self, entry: Entry) -> int:
        """Tell the store an entry; how many things it was that the store did not have."""
        arguments = dict(entry)
        new: int = getattr(self, arguments.pop("do"))(**arguments)
        return new

    def params(self, values: Mapping[str, str]) -> int:
        from mlflow.entities import Param

        self._client.log_batch(self.run_id, params=[Param(key, value) for key, value in values.items()])
        return len(values)

    def metrics(self, points: list[tuple[str, float, int, int]]) -> int:
        """Points (name, value, step, milliseconds); those of a metric rise."""
        from mlflow.entities import Metric

        last, new = dict(self._last), []
        for name, value, step, moment in points:
            before, earlier = last.get(name, (-1, -1))
            if name.startswith(SYSTEM):  # the session did not know how many samples there are; their times differ
                step = before + 1
                if moment <= earlier:
                    continue
            if step > before:
                new.append(Metric(name, value, moment, step))
                last[name] = (step, moment)
        self._client.log_batch(self.run_id, metrics=new)
        self._last = last
        return len(new)

    def tags(self, values: Mapping[str, str]) -> int:
        from mlflow.entities import RunTag

        self._client.log_batch(self.run_id, tags=[RunTag(key, value) for key, value in values.items()])
        return len(values)

    def file(self, file: str, folder: str | None) -> int:
        if self._folder is None:
            self._client.log_artifact(self.run_id, file, folder)
        else:
            place = self._folder / (folder or "")
            place.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, place / Path(file).name)
        return 1

    def curve(self, name: str, x: list[float], lines: dict[str, list[float]], labels: tuple[str, str], log: bool) -> int:
        """A figure of curves, drawn here, where nobody waits for matplotlib."""
        from src.io import pictures

        folder, _, file = name.rpartition("/")
        with tempfile.TemporaryDirectory() as place:
            pictures.curve(x, lines, *labels, log).savefig(Path(place, file))
            return self.file(str(Path(place, file)), folder or None)

    def image(self, file: str, key: str, step: int, moment: int) -> int:
        """A picture of the image grid, as `log_image` stores it; where a kill left it without its thumbnail, that is added."""
        from mlflow.tracking.multimedia import compress_image_size
        from PIL import Image

        begun = next((stem for stem in self._images if stem.startswith(f"{key}+step+{step}+")), None)
        if begun is not None and self._images[begun]:
            return 0
        stem = begun or f"{key}+step+{step}+timestamp+{moment}+{uuid.uuid4()}"
        with tempfile.TemporaryDirectory() as name, Image.open(file) as picture:
            whole, thumbnail = Path(name, f"{stem}.png"), Path(name, f"{stem}+compressed.webp")
            picture.save(whole)
            compress_image_size(picture).save(thumbnail)
            for path in (whole, thumbnail):
                self.file(str(path), "images")
        self._images[stem] = True
        return self.tags({"mlflow.loggedImages": "True"})

    def _names(self, folder: str) -> set[str]:
        """Of the files in a folder of its artifacts."""
        if self._folder is None:
            return {Path(file.path).name for file in self._client.list_artifacts(self.run_id, folder)}
        place = self._folder / folder
        return {path.name for path in place.iterdir()} if place.is_dir() else set()

    def dataset(self, name: str, digest: str, path: str, context: str) -> int:
        from mlflow.data.code_dataset_source import CodeDatasetSource
        from mlflow.data.meta_dataset import MetaDataset
        from mlflow.entities import DatasetInput, InputTag

        source = CodeDatasetSource({"dvc.path": path})
        data = MetaDataset(source=source, name=name, digest=digest)._to_mlflow_entity()
        self._client.log_inputs(self.run_id, [DatasetInput(data, [InputTag("mlflow.data.context", context)])])
        return 1

    def link_experts(self, experiment: str, find: Mapping[str, str]) -> int:
        """Point to the run of the experts, where there is one."""
        experiment_id = _experiment(self._client, experiment, own=self.opening.store is None)
        found = _search(self._client, experiment_id, find)
        if found is None:
            return 0
        name, link = find["ast.name"].removeprefix("experts/"), f"#/experiments/{experiment_id}/runs/{found}"
        return self.tags({"ast.experts_run_id": found, "mlflow.note.content": f"Experts: [{name}]({link})"})

    def end_children(self) -> int:
        experiment_id = self._client.get_run(self.run_id).info.experiment_id
        condition = f"tags.`mlflow.parentRunId` = '{self.run_id}' and attributes.status = 'RUNNING'"
        for run in self._client.search_runs([experiment_id], condition):
            self._client.set_terminated(run.info.run_id, "KILLED")
        return 0

    def end(self, status: str, moment: int | None = None) -> int:
        self._client.set_terminated(self.run_id, status, moment)
        return 0


def open_row(opening: Opening) -> Row:
    """The run that a session goes on in; made where there is none. Raises whatever keeps the store from it."""
    client = _client(opening.store)
    experiment_id = _experiment(client, opening.experiment, own=opening.store is None)
    known = _known(client, experiment_id, opening)
    tags = {**opening.identity, **opening.add, **{k: v for k, v in opening.about.items() if k.startswith("dvc.")}}
    if known is None:
        tags |= opening.about
        if opening.parent is not None:
            parent = _known(client, experiment_id, opening.parent)
            if parent is None:
                raise NoParentError
            tags["mlflow.parentRunId"] = parent
        run = client.create_run(experiment_id, opening.start, tags, opening.name)
        return Row(replace(opening, run_id=run.info.run_id), run.info.run_id, client, _folder=_folder_of(run))
    client.update_run(known, status="RUNNING")
    run = client.get_run(known)
    row = Row(replace(opening, run_id=known), known, client, _folder=_folder_of(run))
    row.tags(tags)
    row._last = {point.key: (point.step, point.timestamp) for point in run.data._metric_objs}  # in one request
    names = row._names("images")
    stems = (name.removesuffix(".png") for name in names if name.endswith(".png"))
    row._images = {stem: f"{stem}+compressed.webp" in names for stem in stems}
    return row


def _client(store: str | None) -> Any:
    quieten()
    import mlflow.store.db.utils
    from mlflow import MlflowClient

    mlflow.store.db.utils.MAX_RETRY_COUNT = SQL_ATTEMPTS
    with _lock():
        return MlflowClient(uri(store))


def _folder_of(run: Any) -> Path | None:
    """Where the run's artifacts lie in this repository; None where they lie elsewhere, which is for MLflow to know."""
    location = run.info.artifact_uri
    return workspace() / location if not urlparse(location).scheme and not Path(location).is_absolute() else None


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
    return _search(client, experiment_id, opening.identity, opening.add)


def _search(client: Any, experiment_id: str, find: Mapping[str, str], add: Mapping[str, str] | None = None) -> str | None:
    """Id of the newest run with the tags `find` whose tags do not contradict `add`."""
    quoted = {key: f'"{value}"' if "'" in value else f"'{value}'" for key, value in find.items()}  # MLflow knows no escape
    condition = " and ".join(f"tags.`{key}` = {value}" for key, value in quoted.items())
    for run in client.search_runs([experiment_id], condition):
        if all(run.data.tags.get(key, value) == value for key, value in (add or {}).items()):
            return str(run.info.run_id)
    return None


def _experiment(client: Any, name: str, own: bool) -> str:
    """The experiment's id. Raises DeletedExperimentError."""
    with _lock():
        if own:
            settle()
        found = client.get_experiment_by_name(name)
        if found and found.lifecycle_stage == "deleted":
            words = (
                f"MLFLOW_TRACKING_URI={client.tracking_uri} mlflow experiments restore --experiment-id {found.experiment_id}"
            )
            raise DeletedExperimentError(f"its experiment '{name}' is deleted: restore it with `{words}`")
        if found:
            return str(found.experiment_id)
        # the kind decides which of its views the UI opens first
        kind = {"mlflow.experimentKind": "custom_model_development"}
        location = (workspace() / ARTIFACTS / name).as_uri() if own else None
        made = str(client.create_experiment(name, artifact_location=location, tags=kind))
        if own:
            settle()
        return made


def settle() -> None:
    """Make the places of artifacts in the repository's own store relative to its top, so that a moved or copied one finds them.

    MLflow makes every path absolute when it creates an experiment; one that lies elsewhere by its user's choice stays there.
    """
    if not (workspace() / DATABASE).exists():
        return
    absolute = "WHERE {0} LIKE 'file:%' OR {0} LIKE '/%'"
    with closing(sqlite3.connect(workspace() / DATABASE, timeout=LOCK_SECONDS)) as database, database:
        names: dict[int, str] = dict(database.execute("SELECT experiment_id, name FROM experiments"))
        found = database.execute(
            f"SELECT experiment_id, artifact_location FROM experiments {absolute.format('artifact_location')}"
        )
        for number, location in found.fetchall():
            place = _inside(location, names[number], number)
            database.execute("UPDATE experiments SET artifact_location = ? WHERE experiment_id = ?", (place, number))
        found = database.execute(f"SELECT run_uuid, experiment_id, artifact_uri FROM runs {absolute.format('artifact_uri')}")
        for run, number, location in found.fetchall():
            place = _inside(location, names[number], number, f"/{run}/artifacts")
            database.execute("UPDATE runs SET artifact_uri = ? WHERE run_uuid = ?", (place, run))


def _inside(location: str, experiment: str, number: int, tail: str = "") -> str:
    """The place below a repository's top; the location itself where it is none that this module or MLflow chose."""
    path = unquote(urlparse(location).path)
    ours = (f"{ARTIFACTS}/{experiment}{tail}", f"mlruns/{number}{tail}")
    return next((place for place in ours if path.endswith(f"/{place}")), location)


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
    """Replace this process by the MLflow UI on this machine's loopback address, with two processes instead of fifteen."""
    from mlflow import MlflowClient

    os.environ.update(QUIET, MLFLOW_SERVER_ENABLE_JOB_EXECUTION="false")
    store = chosen()
    with _lock():
        MlflowClient(uri(store)).search_experiments()  # creates the tables of a fresh store
        if store is None:
            settle()
    os.chdir(workspace())  # from where MLflow takes the places of artifacts
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", uri(store), "-w", "1"]
    os.execv(sys.executable, [*command, "--host", "127.0.0.1", "--port", str(port)])
