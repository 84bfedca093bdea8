"""A run of an MLflow store, and what an entry of tracking means in it.

Whatever is delivered twice is there once: points and pictures go by their step, the rest takes the place of the same.
"""

from __future__ import annotations

import shutil
import tempfile
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from src.tracking.journal import Entry, Opening
from src.tracking.store_trouble import DeletedError

DELETED = "deleted"  # a stage of life of runs and experiments
SYSTEM = "system/"  # metrics of the machine: the UI shows them on a page of their own


@dataclass
class Row:
    """A run of the store that is open."""

    opening: Opening
    run_id: str
    _client: Any
    folder: Path | None = None  # of its artifacts, where they lie in this repository
    last: dict[str, tuple[int, int]] = field(default_factory=dict)  # metric -> step and time of its last point
    images: dict[str, bool] = field(default_factory=dict)  # file name without ending -> whether its thumbnail is there

    def deliver(self, entry: Entry) -> int:
        """Tell the store an entry; how many things it was that the store did not have.

        Raises DeletedError where it refuses everything because the run is deleted.
        """
        arguments = dict(entry)
        try:
            new: int = getattr(self, arguments.pop("do"))(**arguments)
        except Exception as error:
            if refused(error):
                self._check()
            raise
        return new

    def _check(self) -> None:
        """Raise DeletedError where the run is marked as deleted, or its experiment."""
        info = self._client.get_run(self.run_id).info
        if info.lifecycle_stage == DELETED:
            check(self._client.get_experiment(info.experiment_id))
            raise DeletedError("run", self.opening.name, f"--run-id {self.run_id}")

    def params(self, values: Mapping[str, str]) -> int:
        from mlflow.entities import Param

        self._client.log_batch(self.run_id, params=[Param(key, value) for key, value in values.items()])
        return len(values)

    def metrics(self, points: list[tuple[str, float, int, int]]) -> int:
        """Points (name, value, step, milliseconds); those of a metric rise."""
        from mlflow.entities import Metric

        last, new = dict(self.last), []
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
        self.last = last
        return len(new)

    def figures(self, values: Mapping[str, float], moment: int) -> int:
        """A point more, at the next step, of each figure that the store has another value of, or none."""
        known = self._client.get_run(self.run_id).data.metrics
        steps = {name: self.last.get(name, (-1, -1))[0] + 1 for name in values}
        return self.metrics([(name, value, steps[name], moment) for name, value in values.items() if known.get(name) != value])

    def tags(self, values: Mapping[str, str]) -> int:
        from mlflow.entities import RunTag

        self._client.log_batch(self.run_id, tags=[RunTag(key, value) for key, value in values.items()])
        return len(values)

    def file(self, file: str, folder: str | None) -> int:
        if self.folder is None:
            self._client.log_artifact(self.run_id, file, folder)
        else:
            place = self.folder / (folder or "")
            place.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, place / Path(file).name)
        return 1

    def curve(self, name: str, x: list[float], lines: dict[str, list[float]], labels: tuple[str, str], log: bool) -> int:
        """A figure of curves, drawn here, where nobody waits for matplotlib."""
        from src.pages import pictures

        folder, _, file = name.rpartition("/")
        with tempfile.TemporaryDirectory() as place:
            pictures.curve(x, lines, *labels, log).savefig(Path(place, file))
            return self.file(str(Path(place, file)), folder or None)

    def image(self, file: str, key: str, step: int, moment: int) -> int:
        """A picture of the image grid, as `log_image` stores it; where a kill left it without its thumbnail, that is added."""
        from mlflow.tracking.multimedia import compress_image_size
        from PIL import Image

        begun = next((stem for stem in self.images if stem.startswith(f"{key}+step+{step}+")), None)
        if begun is not None and self.images[begun]:
            return 0
        stem = begun or f"{key}+step+{step}+timestamp+{moment}+{uuid.uuid4()}"
        with tempfile.TemporaryDirectory() as name, Image.open(file) as picture:
            whole, thumbnail = Path(name, f"{stem}.png"), Path(name, f"{stem}+compressed.webp")
            picture.save(whole)
            compress_image_size(picture).save(thumbnail)
            for path in (whole, thumbnail):
                self.file(str(path), "images")
        self.images[stem] = True
        return self.tags({"mlflow.loggedImages": "True"})

    def recall(self, points: list[Any]) -> None:
        """What the run holds already: the last points of its metrics, and its pictures."""
        self.last = {point.key: (point.step, point.timestamp) for point in points}
        names = self._names("images")
        stems = (name.removesuffix(".png") for name in names if name.endswith(".png"))
        self.images = {stem: f"{stem}+compressed.webp" in names for stem in stems}

    def _names(self, folder: str) -> set[str]:
        """Of the files in a folder of its artifacts."""
        if self.folder is None:
            return {Path(file.path).name for file in self._client.list_artifacts(self.run_id, folder)}
        place = self.folder / folder
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
        known = self._client.get_experiment_by_name(experiment)
        found = None if known is None else search(self._client, known.experiment_id, find)
        if found is None:
            return 0
        name, link = find["ast.name"].removeprefix("experts/"), f"#/experiments/{known.experiment_id}/runs/{found}"
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


def search(client: Any, experiment_id: str, find: Mapping[str, str], add: Mapping[str, str] | None = None) -> str | None:
    """Id of the newest run with the tags `find` whose tags do not contradict `add`."""
    quoted = {key: f'"{value}"' if "'" in value else f"'{value}'" for key, value in find.items()}  # MLflow knows no escape
    condition = " and ".join(f"tags.`{key}` = {value}" for key, value in quoted.items())
    for run in client.search_runs([experiment_id], condition):
        if all(run.data.tags.get(key, value) == value for key, value in (add or {}).items()):
            return str(run.info.run_id)
    return None


def check(experiment: Any) -> None:
    """Raise DeletedError where it is marked as deleted."""
    if experiment.lifecycle_stage == DELETED:
        raise DeletedError("experiment", experiment.name, f"--experiment-id {experiment.experiment_id}")


def refused(error: Exception) -> bool:
    """Whether the store is there, and will never take this."""
    return getattr(error, "error_code", "") == "INVALID_PARAMETER_VALUE"
