"""Tracking: one experiment a data set, one run a named run, one a set of experts.

Studies have an experiment of their own a data set, a run each, and their trials and variants nested in it.

Work is known by its fingerprint (settings, inputs, code). The same work done again goes on in the same MLflow run, where
points already logged are not logged twice. What is for the repository's own store goes to a journal, which the courier delivers
beside the stage; a server, and all that is tracked strictly, is told at once. Tracking never fails a stage, unless it is asked
to be strict: from the first error on, what can't be delivered waits in a journal, for the next stage or for `track-sync`.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from PIL import Image

from src.ground.errors import InterruptedWorkError, TrackingError
from src.process import depot, errands
from src.process.progress import say
from src.store import files
from src.store.code import ROOT
from src.tracking import backlog, courier, mlflow_row, mlflow_store, store_trouble, stores, system_metrics
from src.tracking.journal import Entry, Journal, Opening
from src.tracking.mlflow_row import Row
from src.tracking.store_trouble import first

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FLUSH_SECONDS = 5.0  # a write takes 20 ms on sqlite and more over http: points are sent in batches
BATCH = 500  # points of one request; MLflow takes 1,000 at most
SAMPLED = ("run", "experts")  # kinds of runs that show how busy the machine was

Value = TypeVar("Value")


@dataclass(frozen=True)
class Nest:
    """Where runs go that belong to another one."""

    experiment: str
    parent: Opening


_nest: ContextVar[Nest | None] = ContextVar("nest", default=None)
_open: ContextVar[Tracker | None] = ContextVar("open", default=None)
_strict: ContextVar[bool] = ContextVar("strict", default=False)
apart = True  # whether a process of its own delivers to the repository's store


def nested(nest: Nest) -> AbstractContextManager[None]:
    """All runs that the block opens, of stages as well, are children of one run, in its experiment."""
    return _within(_nest, nest)


def joined(tracker: Tracker) -> AbstractContextManager[None]:
    """All that stages track inside the block goes into the run that is open already."""
    return _within(_open, tracker)


def strictly(asked: bool) -> AbstractContextManager[None]:
    """Inside the block, where it is asked for, an error of the store ends the stage instead of being said."""
    return _within(_strict, asked)


@contextmanager
def _within(variable: ContextVar[Value], value: Value) -> Iterator[None]:
    """The variable has this value inside the block."""
    token = variable.set(value)
    try:
        yield
    finally:
        variable.reset(token)


def fingerprint(settings: Mapping[str, Any]) -> str:
    """Short digest of what defines a piece of work: its settings and inputs, and the package's code."""
    code = sorted((path.relative_to(ROOT).as_posix(), files.digest(path)) for path in (ROOT / "src").rglob("*.py"))
    return hashlib.sha256(json.dumps([settings, code], sort_keys=True, default=str).encode()).hexdigest()[:16]


def output_tag(path: Path) -> dict[str, str]:
    """By which the run is found that made this very file."""
    return {f"dvc.{path.as_posix()}": files.digest(path)}


@dataclass
class Tracker:
    """One MLflow run that is open. Every method is safe to call when the store is gone, and from several threads."""

    opening: Opening
    strict: bool = False
    gone: bool = False  # whether the store has failed, so that the rest waits
    _row: Row | None = None
    _journal: Journal | None = None
    _problem: TrackingError | None = None  # of strict tracking
    _logged: dict[str, int] = field(default_factory=dict)  # metric or picture -> last step that was logged here
    _points: list[tuple[str, float, int, int]] = field(default_factory=list)
    _flushed: float = field(default_factory=time.monotonic)
    _lock: threading.RLock = field(default_factory=threading.RLock)

    def params(self, values: Mapping[str, Any]) -> None:
        """Log settings; nested mappings get dotted names."""
        self._put({"do": "params", "values": {name: str(value) for name, value in flatten(values)}})

    def metrics(self, values: Mapping[str, float], step: int = 0) -> None:
        """Queue points, steps of a metric rising; finite numbers only reach the store, and none twice."""
        new = {name: value for name, value in values.items() if np.isfinite(value) and step > self._logged.get(name, -1)}
        self._logged |= dict.fromkeys(new, step)
        self._queue(new, step)

    def figures(self, values: Mapping[str, float]) -> None:
        """Log figures that other runs may change: a point more of each that is another than the last one."""
        finite = {name: float(value) for name, value in values.items() if np.isfinite(value)}
        self._put({"do": "figures", "values": finite, "moment": _now()})

    def _queue(self, values: Mapping[str, float], step: int) -> None:
        with self._lock:
            self._points += [(name, float(value), step, _now()) for name, value in values.items()]
            if time.monotonic() - self._flushed > FLUSH_SECONDS:
                self.flush()

    def flush(self) -> None:
        with self._lock:
            points, self._points = self._points, []
            self._flushed = time.monotonic()
            for first in range(0, len(points), BATCH):
                self._put({"do": "metrics", "points": points[first : first + BATCH]})

    def tags(self, values: Mapping[str, str]) -> None:
        self._put({"do": "tags", "values": dict(values)})

    def output(self, path: Path) -> None:
        """Tie the run to an artifact by the digest that DVC records for it."""
        self.tags(output_tag(path))

    def image(self, key: str, picture: np.ndarray, step: int) -> None:
        """Log a picture (H, W, 3) of uint8 to the image grid, unless this step is there already."""
        marker = f"image.{key}"
        if step > self._logged.get(marker, -1):
            self._logged[marker] = step
            entry = {"do": "image", "key": key, "step": step, "moment": _now()}
            self._put_made(entry, f"{key}.png", Image.fromarray(picture).save)

    def figure(self, name: str, figure: Figure) -> None:
        folder, _, file = name.rpartition("/")
        self._put_made({"do": "file", "folder": folder or None}, file, figure.savefig)

    def page(self, name: str, html: str) -> None:
        """A page that needs nothing else."""
        self._put_made({"do": "file", "folder": None}, name, lambda path: path.write_text(html, encoding="utf-8"))

    def curve(
        self, name: str, x: Sequence[float], lines: Mapping[str, Sequence[float]], labels: tuple[str, str], log: bool = False
    ) -> None:
        """A figure of curves over x, with the labels of both axes; it is drawn when it is delivered."""
        self._put({"do": "curve", "name": name, "x": x, "lines": lines, "labels": labels, "log": log})

    def file(self, path: Path, folder: str | None = None) -> None:
        if path.exists():
            self._put({"do": "file", "file": str(path.resolve()), "folder": folder})

    def dataset(self, name: str, path: Path, context: str) -> None:
        """Log a file as dataset input, with DVC's digest."""
        self._put({"do": "dataset", "name": name, "digest": files.digest(path), "path": path.as_posix(), "context": context})

    def end_children(self) -> None:
        """End those of this run's children that a killed process left open; nobody may be at work in them."""
        self._put({"do": "end_children"})

    def link_experts(self, experiment: str, experts: str, buffer: Path) -> None:
        """Point to the run of the experts that made `buffer`."""
        if buffer.exists():
            nest = _nest.get()
            find = {"ast.name": f"experts/{experts}", "ast.kind": "experts", "ast.buffer": files.digest(buffer)}
            self._put({"do": "link_experts", "experiment": nest.experiment if nest else experiment, "find": find})

    def sample(self, values: Mapping[str, float]) -> None:
        """Queue a sample of the machine; where the store fails, that is for the stage's own thread to say."""
        try:
            self._queue(values, 0)
        except TrackingError as error:
            self._problem = error

    def _put_made(self, entry: Entry, name: str, save: Callable[[Path], Any]) -> None:
        """An entry with a file that `save` makes."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, name)
            try:
                save(path)
            except OSError as error:  # no space for it
                return self._fail(error)
            return self._put({**entry, "file": str(path)})

    def _put(self, entry: Entry) -> None:
        """Tell the store, or the journal."""
        if (problem := self._problem) is not None:
            self._problem = None
            raise problem
        backlog.say_noted()
        with self._lock:
            if self._row is not None:
                try:
                    self._row.deliver(entry)
                except Exception as error:  # the store may fail in any way; science goes on
                    self._fail(error)
                    if self._row is not None:
                        return
            if self._journal is not None and self._row is None:
                try:
                    self._journal.append(entry)
                except OSError as error:
                    say(f"Warning: what MLflow is to be told can't be kept ({first(error)}): the rest is not tracked")
                    self._close()

    def _fail(self, error: Exception) -> None:
        """Say it once. What the store refuses it would refuse for ever; all else waits in the journal from now on."""
        row, self._row = self._row, None
        store = self.opening.store
        trouble = store_trouble.sentence(error, store)
        if self.strict:
            raise TrackingError(
                f"Stopped: {trouble}, and tracking is to be strict: what is done is kept, and the same command goes on "
                "from there"
            ) from None
        if row is not None and mlflow_row.refused(error):
            self._row = row
            return say(f"Warning: MLflow at {store} refused a part of {self.opening.name}: {first(error)}")
        self.gone = True
        say(f"Warning: {trouble}; this stage goes on, and what it tracks from here on waits for `python -m src.cli track-sync`")
        return self._wait()

    def _wait(self) -> None:
        """Write to a journal from now on."""
        try:
            self._journal = Journal(self.opening)
        except OSError as error:
            say(f"Warning: what MLflow is to be told can't be kept ({first(error)}): nothing is tracked")

    def _begin(self) -> None:
        """Open the run, after all that waits for its store; or leave both to the courier.

        Where its parent or an earlier session waits, it waits too.
        """
        parent = self.opening.parent
        if depot.mirror is not None and self.opening.store == stores.OWN:  # on a machine that does not see it
            return None
        if parent is None:
            backlog.say_others(self.opening.store)
        if self._is_apart or (parent is not None and parent.run_id is None):
            self._wait()
            return self._send()
        try:
            backlog.clear_way(self.opening)
            self._row = mlflow_store.open_row(self.opening)
            self.opening = self._row.opening
        except Exception as error:  # see _put
            self._fail(error)
        return None

    @property
    def _is_apart(self) -> bool:
        """Whether the courier delivers: not where errors are to end the stage, nor to a server, whose absence is to be said."""
        return apart and self.opening.store == stores.OWN and not self.strict

    def _send(self) -> None:
        """Have the courier at work, where it is to be."""
        if self._is_apart and self._journal is not None and not errands.is_hand():  # its caller has one
            try:
                courier.ensure()
            except OSError as error:
                say(f"Warning: MLflow is told later, by the next stage ({first(error)})")

    def _end(self, status: str) -> None:
        self.flush()
        self._put({"do": "end", "status": status, "moment": _now()})
        self._close()
        backlog.say_noted()

    def _close(self) -> None:
        """Leave the journal to whoever delivers it: the courier may have gone while nothing came."""
        if self._journal is not None:
            self._journal.close()
            self._send()
        self._journal = None


@contextmanager
def track(
    experiment: str, name: str, kind: str, find: Mapping[str, str], add: Mapping[str, str] | None = None, sampled: bool = True
) -> Iterator[Tracker]:
    """An MLflow run around the block, of this name and kind.

    It is the newest one that has the tags `find`, and has the tags `add` or does not have them yet; or a new one. Inside
    `joined` it is the one that is open already, and stays open. A stage that is no work of the run's own is not `sampled`.
    """
    if (tracker := _open.get()) is not None:
        yield tracker
        return
    tracker = Tracker(_opening(experiment, name, kind, find, add or {}), _strict.get())
    tracker._begin()
    status = "FAILED"
    try:
        with system_metrics.sampled(tracker.sample) if sampled and kind in SAMPLED else nullcontext():
            yield tracker
        status = "FINISHED"
    except (KeyboardInterrupt, InterruptedWorkError):
        status = "KILLED"
        raise
    finally:
        tracker._end(status)


def _opening(experiment: str, name: str, kind: str, find: Mapping[str, str], add: Mapping[str, str]) -> Opening:
    mlflow_store.quieten()
    nest = _nest.get()
    about = {**mlflow_store.surroundings(), **_dvc_tags()}
    store = stores.current()
    return Opening(store, nest.experiment if nest else experiment, name, kind, dict(find), dict(add), about, _now(),
                   nest.parent if nest else None)  # fmt: skip


def _now() -> int:
    return int(time.time() * 1000)


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
