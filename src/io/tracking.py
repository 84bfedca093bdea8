"""MLflow: one experiment a data set, one run a named run, one a set of experts. The only module that imports mlflow.

Studies have an experiment of their own a data set, a run each, and their trials and variants nested in it.

Work is known by its fingerprint (settings, inputs, code). The same work done again goes on in the same MLflow run, where
points already logged are not logged twice. Tracking never fails a stage: the first error is said once, and tracking stops.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from filelock import FileLock

from src.ground.errors import InterruptedWorkError
from src.ground.runtime import workspace
from src.io import files
from src.io.progress import say

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FLUSH_SECONDS = 5.0  # a write takes 20 ms on sqlite and more over http: points are sent in batches
BATCH = 500  # points of one request; MLflow takes 1,000 at most
QUIET = {
    # without these an unreachable server holds every call for four minutes
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
}


@dataclass(frozen=True)
class Nest:
    """Where runs go that belong to another one."""

    experiment: str
    parent: str | None  # run id; None where the parent is not tracked, and so nothing of it is


_nest: ContextVar[Nest | None] = ContextVar("nest", default=None)
_open: ContextVar[Tracker | None] = ContextVar("open", default=None)


@contextmanager
def nested(nest: Nest) -> Iterator[None]:
    """All runs that the block opens, of stages as well, are children of one run, in its experiment."""
    token = _nest.set(nest)
    try:
        yield
    finally:
        _nest.reset(token)


@contextmanager
def joined(tracker: Tracker) -> Iterator[None]:
    """All that stages track inside the block goes into the run that is open already."""
    token = _open.set(tracker)
    try:
        yield
    finally:
        _open.reset(token)


def store_uri() -> str:
    """MLFLOW_TRACKING_URI, or else the sqlite file in the repository's top folder."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{workspace() / 'mlflow.db'}"


def fingerprint(settings: Mapping[str, Any]) -> str:
    """Short digest of what defines a piece of work: its settings and inputs, and the package's code."""
    code = sorted((p.as_posix(), files.digest(p)) for p in Path("src").rglob("*.py"))
    return hashlib.sha256(json.dumps([settings, code], sort_keys=True, default=str).encode()).hexdigest()[:16]


@dataclass
class Tracker:
    """One MLflow run that is open; every method is safe to call when tracking has stopped."""

    run_id: str | None = None
    _client: Any = None
    _logged: dict[str, int] = field(default_factory=dict)  # metric or picture -> last step logged, by whatever process
    _points: list[tuple[str, float, int]] = field(default_factory=list)
    _flushed: float = field(default_factory=time.monotonic)

    def params(self, values: Mapping[str, Any]) -> None:
        """Log settings; nested mappings get dotted names."""
        flat = {name: str(value) for name, value in flatten(values)}
        self._send(lambda mlflow: mlflow.log_params(flat))

    def metrics(self, values: Mapping[str, float], step: int = 0) -> None:
        """Queue points, steps of a metric rising; finite numbers only reach the store, and none twice."""
        new = {name: value for name, value in values.items() if np.isfinite(value) and step > self._logged.get(name, -1)}
        self._points += [(name, value, step) for name, value in new.items()]
        self._logged |= dict.fromkeys(new, step)
        if time.monotonic() - self._flushed > FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        points, self._points = self._points, []
        self._flushed = time.monotonic()
        for first in range(0, len(points), BATCH):
            self._send(functools.partial(self._log_batch, points[first : first + BATCH]))

    def _log_batch(self, points: list[tuple[str, float, int]], mlflow: Any) -> None:
        now = int(time.time() * 1000)
        entities = [mlflow.entities.Metric(name, value, now, step) for name, value, step in points]
        self._client.log_batch(self.run_id, metrics=entities)

    def tags(self, values: Mapping[str, str]) -> None:
        self._send(lambda mlflow: mlflow.set_tags(dict(values)))

    def output(self, path: Path) -> None:
        """Tie the run to an artifact by the digest that DVC records for it."""
        self.tags({f"dvc.{path.as_posix()}": files.digest(path)})

    def image(self, key: str, picture: np.ndarray, step: int) -> None:
        """Log a picture (H, W, 3) of uint8 to the image grid, unless this step is there already."""
        marker = f"image.{key}"
        if step > self._logged.get(marker, -1):
            self._send(lambda mlflow: mlflow.log_image(picture, key=key, step=step, synchronous=True))
            self._logged[marker] = step
            self.tags({marker: str(step)})

    def figure(self, name: str, figure: Figure) -> None:
        self._send(lambda mlflow: mlflow.log_figure(figure, name))

    def file(self, path: Path, folder: str | None = None) -> None:
        if path.exists():
            self._send(lambda mlflow: mlflow.log_artifact(str(path), folder))

    def dataset(self, name: str, path: Path, context: str) -> None:
        """Log a file as dataset input, with DVC's digest."""

        def log(mlflow: Any) -> None:
            from mlflow.data.code_dataset_source import CodeDatasetSource
            from mlflow.data.meta_dataset import MetaDataset

            source = CodeDatasetSource({"dvc.path": path.as_posix()})
            mlflow.log_input(MetaDataset(source=source, name=name, digest=files.digest(path)), context=context)

        self._send(log)

    def end_children(self) -> None:
        """End those of this run's children that a killed process left open; nobody may be at work in them."""

        def end(mlflow: Any) -> None:
            experiment_id = mlflow.get_run(self.run_id).info.experiment_id
            condition = f"tags.`mlflow.parentRunId` = '{self.run_id}' and attributes.status = 'RUNNING'"
            for run in mlflow.search_runs([experiment_id], condition, output_format="list"):
                self._client.set_terminated(run.info.run_id, "KILLED")

        self._send(end)

    def link_experts(self, experiment: str, experts: str, buffer: Path) -> None:
        """Point to the run of the experts that made `buffer`."""

        def link(mlflow: Any) -> None:
            tags = {"ast.name": f"experts/{experts}", "ast.kind": "experts", "ast.buffer": files.digest(buffer)}
            experiment_id = _experiment(mlflow, nest.experiment if (nest := _nest.get()) else experiment)
            if found := _search(mlflow, experiment_id, tags):
                link = f"#/experiments/{experiment_id}/runs/{found}"
                mlflow.set_tags({"ast.experts_run_id": found, "mlflow.note.content": f"Experts: [{experts}]({link})"})

        if buffer.exists():
            self._send(link)

    def _send(self, call: Callable[[Any], Any]) -> None:
        if self.run_id is None:
            return
        import mlflow

        try:
            call(mlflow)
        except Exception as error:  # the store may fail in any way; science goes on
            self._stop(error)

    def _stop(self, error: Exception) -> None:
        first = " ".join(str(error).split())[:200]
        say(f"Warning: MLflow at {store_uri()} failed ({first}); this stage goes on, but the rest of it is not tracked")
        self.run_id = None

    def _begin(self, experiment: str, name: str, kind: str, find: Mapping[str, str], add: Mapping[str, str]) -> None:
        """Open the run that `track` describes, or a new one; none where it belongs to one that is not tracked."""
        nest = _nest.get()
        if nest is not None and nest.parent is None:
            return
        import mlflow

        mlflow.set_tracking_uri(store_uri())
        experiment_id = _experiment(mlflow, nest.experiment if nest else experiment)
        known = _search(mlflow, experiment_id, {"ast.name": name, "ast.kind": kind, **find}, add)
        within = {"nested": True, "parent_run_id": nest.parent} if nest and not known else {"nested": nest is not None}
        run = mlflow.start_run(run_id=known, experiment_id=experiment_id, run_name=None if known else name, **within)
        self.run_id, self._client = run.info.run_id, mlflow.MlflowClient()
        self._logged = self._last_steps(run) if known else {}
        mlflow.set_tags({"ast.name": name, "ast.kind": kind, **find, **add, **_dvc_tags()})

    def _last_steps(self, run: Any) -> dict[str, int]:
        steps = {k: max(p.step for p in self._client.get_metric_history(self.run_id, k)) for k in run.data.metrics}
        marks = {k: int(v) for k, v in run.data.tags.items() if k.startswith("image.")}
        return {**steps, **marks}

    def _end(self, status: str) -> None:
        nest = _nest.get()
        if nest is not None and nest.parent is None:
            return
        self.flush()
        self._send(lambda mlflow: mlflow.end_run(status))
        if self.run_id is None:  # the fluent state would otherwise try again at exit
            import mlflow

            with contextlib.suppress(Exception):
                mlflow.end_run(status)


@contextmanager
def track(
    experiment: str, name: str, kind: str, find: Mapping[str, str], add: Mapping[str, str] | None = None
) -> Iterator[Tracker]:
    """An MLflow run around the block, of this name and kind.

    It is the newest one that has the tags `find`, and has the tags `add` or does not have them yet; or a new one. Inside
    `joined` it is the one that is open already, and stays open.
    """
    if (tracker := _open.get()) is not None:
        yield tracker
        return
    for variable, value in QUIET.items():
        os.environ.setdefault(variable, value)
    for library in ("mlflow", "alembic"):
        logging.getLogger(library).setLevel(logging.ERROR)
    tracker = Tracker()
    try:
        tracker._begin(experiment, name, kind, find, add or {})
    except Exception as error:  # see _send
        tracker._stop(error)
    status = "FAILED"
    try:
        yield tracker
        status = "FINISHED"
    except (KeyboardInterrupt, InterruptedWorkError):
        status = "KILLED"
        raise
    finally:
        tracker._end(status)


def _experiment(mlflow: Any, name: str) -> str:
    """The experiment's id; made under a lock, as processes that create a fresh sqlite store together destroy it."""
    uri = store_uri()
    location = None if uri.startswith("http") else (workspace() / "mlartifacts" / name).as_uri()
    with FileLock(workspace() / ".mlflow.lock"):
        found = mlflow.get_experiment_by_name(name)
        if found:
            return str(found.experiment_id)
        # the kind decides which of its views the UI opens first
        kind = {"mlflow.experimentKind": "custom_model_development"}
        return str(mlflow.create_experiment(name, artifact_location=location, tags=kind))


def _search(mlflow: Any, experiment_id: str, find: Mapping[str, str], add: Mapping[str, str] | None = None) -> str | None:
    """Id of the newest run with the tags `find` whose tags do not contradict `add`."""
    condition = " and ".join(f"tags.`{key}` = '{value}'" for key, value in find.items())
    for run in mlflow.search_runs([experiment_id], condition, output_format="list"):
        if all(run.data.tags.get(key, value) == value for key, value in (add or {}).items()):
            return str(run.info.run_id)
    return None


def _dvc_tags() -> dict[str, str]:
    names = {"DVC_STAGE": "dvc.stage", "DVC_EXP_NAME": "dvc.experiment"}
    return {tag: os.environ[variable] for variable, tag in names.items() if variable in os.environ}


def flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Pairs of dotted name and value."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def load() -> None:
    """Take the memory that tracking takes, as a plan of a stage's memory must."""
    import mlflow
    import mlflow.store.tracking.sqlalchemy_store  # noqa: F401


def serve(port: int) -> None:
    """Replace this process by the MLflow UI on this machine's loopback address, with two processes instead of fifteen."""
    import mlflow

    os.environ.update(QUIET, MLFLOW_SERVER_ENABLE_JOB_EXECUTION="false")
    with FileLock(workspace() / ".mlflow.lock"):
        mlflow.set_tracking_uri(store_uri())
        mlflow.search_experiments()  # creates the tables of a fresh store
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", store_uri(), "-w", "1"]
    os.execv(sys.executable, [*command, "--host", "127.0.0.1", "--port", str(port)])
