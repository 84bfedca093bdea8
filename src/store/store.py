"""The store of artifacts: where they lie, and how they go in and come out whole."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from pathlib import Path

import torch
from torch import Tensor

from src.ground.errors import UserError
from src.maths import pixels
from src.maths.pixels import Normalisation, Space, Whitening
from src.store import files, tensors, values
from src.store.values import Record, Snapshots, Split, Statistics, SyntheticSet, TupleSplit, TupleStatistics

STAGES = {"prepare": "dataset", "experts": "experts", "distill": "run", "evaluate": "run"}  # each with its option


def remake(stage: str, name: str) -> str:
    """For error sentences: how an artifact is made again."""
    return f"make it with `python -m src.cli {stage} --{STAGES[stage]} {name}`"


def read_synthetic(path: Path, remedy: str) -> SyntheticSet:
    """The synthetic set of any file, in float32 where its pixels are of half precision."""
    dtypes: dict[str, torch.dtype | tuple[torch.dtype, ...]] = {"labels": (torch.int64, torch.float32)}
    dtypes |= {"pixels": (torch.float32, torch.float16), "syn_lr": torch.float32}
    found = tensors.load(path, values.SYNTHETIC, remedy, dtypes)
    return SyntheticSet(**{**found, "pixels": found["pixels"].float()})


@dataclass(frozen=True)
class Store:
    """A folder of artifacts, one for each stage in it."""

    data: Path = Path("data")

    def dataset_folder(self, name: str) -> Path:
        return self.data / "prepare" / name

    def split_file(self, dataset: str, split: str) -> Path:
        return self.dataset_folder(dataset) / f"{split}.safetensors"

    def statistics_file(self, dataset: str) -> Path:
        return self.dataset_folder(dataset) / "statistics.json"

    def space_file(self, dataset: str) -> Path:
        return self.dataset_folder(dataset) / "space.safetensors"

    def input_files(self, dataset: str, splits: Iterable[str]) -> tuple[Path, ...]:
        """What `load_inputs` reads of these splits."""
        return (*(self.split_file(dataset, one) for one in splits), self.space_file(dataset), self.statistics_file(dataset))

    def key(self, path: Path) -> str:
        """A place as records name it, wherever the store lies."""
        return f"data/{path.relative_to(self.data).as_posix()}"

    def imported_file(self, name: str) -> Path:
        """A synthetic set that other code made; in git, as released ones are."""
        return self.data / "imported" / f"{name}.safetensors"

    @property
    def no_experts(self) -> Path:
        """What DVC takes for the experts of a run without any, as it puts None for null. In git: a dependency must be there."""
        return self.data / "experts" / "None"

    def trajectories_folder(self, experts: str) -> Path:
        return self.data / "experts" / experts / "trajectories"

    def trajectory_file(self, experts: str, index: int) -> Path:
        return self.trajectories_folder(experts) / f"{index:03d}.safetensors"

    def expert_curves_file(self, experts: str) -> Path:
        return self.data / "experts" / experts / "curves.csv"

    def synthetic_file(self, run: str) -> Path:
        return self.data / "distill" / run / "synthetic.safetensors"

    def snapshots_file(self, run: str) -> Path:
        return self.data / "distill" / run / "snapshots.safetensors"

    def history_file(self, run: str) -> Path:
        return self.data / "distill" / run / "history.csv"

    def metrics_file(self, run: str) -> Path:
        """Apart from the other artifacts, which DVC keeps: these small files stay in git."""
        return self.data / "metrics" / f"{run}.json"

    def students_file(self, run: str) -> Path:
        return self.data / "evaluate" / run / "students.csv"

    def networks_file(self, run: str) -> Path:
        return self.data / "evaluate" / run / "networks.csv"

    def scores_file(self, run: str) -> Path:
        """What these tables and the metrics were made from."""
        return self.data / "evaluate" / run / "scores.json"

    def predictions_file(self, run: str) -> Path:
        return self.data / "evaluate" / run / "predictions.csv"

    def report_file(self, suffix: str) -> Path:
        return self.data / "report" / f"report.{suffix}"

    # -- scores

    def save_scores(self, run: str, record: Record) -> None:
        files.write_json(self.scores_file(run), files.sealed({tensors.RECORD: record.plain()}))

    # -- real images

    def save_split(self, dataset: str, split: str, value: Split | TupleSplit, record: Record) -> None:
        tensors.save(self.split_file(dataset, split), value.tensors(), replace(record, kind=values.split_kind(split)))

    def load_split(self, dataset: str, split: str) -> Split:
        found = tensors.load(
            self.split_file(dataset, split),
            values.split_kind(split),
            remake("prepare", dataset),
            {"images": torch.uint8, "labels": torch.int64},
        )
        return Split(found["images"], found["labels"])

    def load_tuples(self, dataset: str, split: str) -> TupleSplit:
        """Of a data set of tuples."""
        dtypes: dict[str, torch.dtype | tuple[torch.dtype, ...]] = {"rows": torch.int64}
        for name, kind in self.load_tuple_statistics(dataset).kinds.items():
            dtypes |= {values.VALUES + name: (torch.float32, torch.uint8), values.GROUPS + name: torch.int64}
            dtypes |= {values.TEXTS + name: torch.uint8} if kind == "text" else {}
            dtypes |= {values.WAVES + name: torch.int16} if kind == "audio" else {}
        path, remedy = self.split_file(dataset, split), remake("prepare", dataset)
        found = tensors.load(path, values.split_kind(split), remedy, dtypes)
        return TupleSplit.of(found, list(self.load_tuple_statistics(dataset).kinds))

    def save_statistics(self, dataset: str, value: Statistics, record: Record) -> None:
        files.write_json(
            self.statistics_file(dataset),
            files.sealed({**vars(value), tensors.RECORD: replace(record, kind=values.STATISTICS).plain()}),
        )

    def load_statistics(self, dataset: str) -> Statistics:
        path, remedy = self.statistics_file(dataset), remake("prepare", dataset)
        found = tensors.read_sealed(path, remedy)
        with files.understood(path, remedy):
            del found[tensors.RECORD]
            tuples = {name: tuple(found[name]) for name in ("classes", "mean", "std", "source_mean", "source_std", "skipped")}
            if "modalities" in found:
                tuples["modalities"] = tuple((name, kind, tuple(shape)) for name, kind, shape in found["modalities"])
                return TupleStatistics(**{**found, **tuples})
            return Statistics(**{**found, **tuples})

    def load_tuple_statistics(self, dataset: str) -> TupleStatistics:
        """Of a data set of tuples; raises UserError where it is one of images in classes."""
        found = self.load_statistics(dataset)
        if not isinstance(found, TupleStatistics):
            raise UserError(f"{dataset} has images in classes, not tuples: name a data set with modalities")
        return found

    def save_space(self, dataset: str, value: Space, record: Record) -> None:
        tensors.save(self.space_file(dataset), dict(vars(value)), replace(record, kind=values.SPACE))

    def load_space(self, dataset: str) -> Space:
        """What networks read of this data set's pixels."""
        path, remedy = self.space_file(dataset), remake("prepare", dataset)
        with tensors.opened(path, remedy) as file:
            kind = Whitening if "matrix" in file.keys() else Normalisation  # noqa: SIM118, not a dict
        names = [field.name for field in fields(kind)]
        return kind(**tensors.load(path, values.SPACE, remedy, dict.fromkeys(names, torch.float32)))

    def load_inputs(self, dataset: str, split: str) -> tuple[Tensor, Tensor]:
        """Network input (N, C, H, W) and labels (N,) of a split."""
        found, pixel_max = self.load_split(dataset, split), self.load_statistics(dataset).pixel_max
        return pixels.inputs(self.load_space(dataset), found.images, pixel_max), found.labels

    def load_labels(self, dataset: str, split: str) -> Tensor:
        """(N,), of tuples their numbers."""
        if isinstance(self.load_statistics(dataset), TupleStatistics):
            return torch.arange(len(self.load_tuples(dataset, split).rows))
        return self.load_split(dataset, split).labels

    def load_real(self, dataset: str, split: str) -> tuple[Tensor, ...]:
        """A split as the task has it: what `load_inputs` gives, or rows, numbers, items and groups of tuples."""
        statistics = self.load_statistics(dataset)
        if not isinstance(statistics, TupleStatistics):
            return self.load_inputs(dataset, split)
        found, space = self.load_tuples(dataset, split), self.load_space(dataset)
        assert isinstance(space, Normalisation)
        fitted = zip(*(values.split(statistics.shape.sizes) for values in (space.mean, space.std)), strict=True)
        own = [
            Normalisation(*numbers).normalise(statistics.natural(items.values))
            for items, numbers in zip(found.items.values(), fitted, strict=True)
        ]
        groups = [items.groups for items in found.items.values()]
        return found.rows, torch.arange(len(found.rows)), *own, *groups

    # -- experts

    def save_trajectory(self, experts: str, index: int, thetas: Tensor, record: Record) -> None:
        """Save snapshots theta*_0 .. theta*_T as one tensor (T + 1, P)."""
        # not in the folder of the trajectories, which DVC digests as a whole
        record, apart = replace(record, kind=values.trajectory_kind(index)), self.trajectories_folder(experts).parent
        tensors.save(self.trajectory_file(experts, index), {"theta": thetas}, record, apart)

    def read_snapshots(self, experts: str, index: int, start: int, stop: int) -> Tensor:
        """theta*_start .. theta*_(stop - 1) of one trajectory, (stop - start, P), read as a slice."""
        path = self.trajectory_file(experts, index)
        with tensors.opened(path, remake("experts", experts)) as file:
            snapshots: Tensor = file.get_slice("theta")[start:stop]
        return snapshots

    def check_trajectories(self, experts: str, count: int, record: Record) -> None:
        """Raises ArtifactError unless all `count` trajectories are there, whole, and were made as `record` says."""
        for index in range(count):
            path, remedy = self.trajectory_file(experts, index), remake("experts", experts)
            tensors.check_record(path, replace(record, kind=values.trajectory_kind(index)), remedy)
            tensors.load(path, values.trajectory_kind(index), remedy, {"theta": torch.float32})

    # -- synthetic sets

    def save_synthetic(self, run: str, value: SyntheticSet, record: Record) -> None:
        tensors.save(self.synthetic_file(run), dict(vars(value)), replace(record, kind=values.SYNTHETIC))

    def load_synthetic(self, run: str) -> SyntheticSet:
        return read_synthetic(self.synthetic_file(run), remake("distill", run))

    def copy_synthetic(self, run: str, value: SyntheticSet, to: Path, half: bool) -> None:
        """Write the run's synthetic set, as it was read, and its record to a file, with pixels in float16 where `half`."""
        path, found = self.synthetic_file(run), dict(vars(value))
        if half:
            found["pixels"] = value.pixels.half()
            if not found["pixels"].isfinite().all():
                raise UserError(f"{path} holds pixels beyond {torch.finfo(torch.float16).max:,.0f}: export it without --half")
        tensors.write(to, found, tensors.record_of(path, remake("distill", run)))

    def save_snapshots(self, run: str, value: Snapshots, record: Record) -> None:
        kept = {name: tensor for name, tensor in vars(value).items() if tensor is not None}
        tensors.save(self.snapshots_file(run), kept, replace(record, kind=values.SNAPSHOTS))

    def load_snapshots(self, run: str) -> Snapshots:
        dtypes, learned = {"iterations": torch.int64, "pixels": torch.float32}, {"labels": torch.float32}
        given = (values.SNAPSHOTS, remake("distill", run), dtypes, learned)
        return Snapshots(**tensors.load(self.snapshots_file(run), *given))
