"""The MLflow store, and what an entry of tracking means in it. The only module that imports mlflow.

Whatever is delivered twice is there once: points and pictures go by their step, the rest takes the place of the same.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import tempfile
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from filelock import FileLock

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


class NoParentError(Exception):
    """The run that a run belongs to is not in the store yet."""


def uri() -> str:
    """MLFLOW_TRACKING_URI, or else the sqlite file in the repository's top folder."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{workspace() / 'mlflow.db'}"


def refused(error: Exception) -> bool:
    """Whether the store is there, and will never take this."""
    return getattr(error, "error_code", "") == "INVALID_PARAMETER_VALUE"


def surroundings() -> dict[str, str]:
    """Tags that MLflow gives every new run: the user, the program, the commit."""
    from mlflow.tracking.context.registry import resolve_tags

    return {key: str(value) for key, value in resolve_tags().items()}


@dataclass
class Row:
    """A run of the store that is open."""

    opening: Opening
    run_id: str
    _client: Any
    _last: dict[str, tuple[int, int]] = field(default_factory=dict)  # metric -> step and time of its last point
    _images: dict[str, bool] = field(default_factory=dict)  # file name without ending -> whether its thumbnail is there

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
        self._client.log_artifact(self.run_id, file, folder)
        return 1

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
                self._client.log_artifact(self.run_id, str(path), "images")
        self._images[stem] = True
        return self.tags({"mlflow.loggedImages": "True"})

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
        experiment_id = _experiment(self._client, experiment)
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
    quieten()
    from mlflow import MlflowClient

    with _lock():
        client = MlflowClient(os.environ.get("MLFLOW_TRACKING_URI") or opening.store or uri())
    experiment_id = _experiment(client, opening.experiment)
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
        return Row(replace(opening, run_id=run.info.run_id), run.info.run_id, client)
    client.update_run(known, status="RUNNING")
    row = Row(replace(opening, run_id=known), known, client)
    row.tags(tags)
    latest = client.get_run(known).data._metric_objs  # with step and time, in one request
    row._last = {point.key: (point.step, point.timestamp) for point in latest}
    names = {Path(file.path).name for file in client.list_artifacts(known, "images")}
    stems = (name.removesuffix(".png") for name in names if name.endswith(".png"))
    row._images = {stem: f"{stem}+compressed.webp" in names for stem in stems}
    return row


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


def _experiment(client: Any, name: str) -> str:
    """The experiment's id."""
    location = None if client.tracking_uri.startswith("http") else (workspace() / "mlartifacts" / name).as_uri()
    with _lock():
        found = client.get_experiment_by_name(name)
        if found:
            return str(found.experiment_id)
        # the kind decides which of its views the UI opens first
        kind = {"mlflow.experimentKind": "custom_model_development"}
        return str(client.create_experiment(name, artifact_location=location, tags=kind))


def _lock() -> FileLock:
    """Held by whoever may be the first: processes that create a fresh sqlite store together destroy it."""
    return FileLock(workspace() / ".mlflow.lock")


def quieten() -> None:
    """Bound the store's waits, and leave it to this project's one sentence to say what failed."""
    for variable, value in QUIET.items():
        os.environ.setdefault(variable, value)
    for library in ("mlflow", "alembic", "urllib3"):
        logging.getLogger(library).setLevel(logging.CRITICAL)


def monitors() -> list[Any]:
    """MLflow's monitors of the processor, the memory, and the GPU where there is one."""
    from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
    from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor

    found: list[Any] = [CPUMonitor()]
    with contextlib.suppress(ImportError, RuntimeError):  # its driver is not there
        found.append(GPUMonitor())
    return found


def load() -> None:
    """Take the memory that tracking takes, as a plan of a stage's memory must."""
    import mlflow
    import mlflow.store.tracking.sqlalchemy_store  # noqa: F401


def serve(port: int) -> None:
    """Replace this process by the MLflow UI on this machine's loopback address, with two processes instead of fifteen."""
    from mlflow import MlflowClient

    os.environ.update(QUIET, MLFLOW_SERVER_ENABLE_JOB_EXECUTION="false")
    with _lock():
        MlflowClient(uri()).search_experiments()  # creates the tables of a fresh store
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", uri(), "-w", "1"]
    os.execv(sys.executable, [*command, "--host", "127.0.0.1", "--port", str(port)])
