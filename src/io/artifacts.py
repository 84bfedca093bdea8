"""The artifacts that stages exchange: where they lie, how they are written and checked on load.

A tensor artifact is a safetensors file with one metadata entry, JSON of its `Record`: what kind it is and what made it. One
entry, because safetensors writes several in random order, which would change the file's digest.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from src.ground.errors import ArtifactError, UserError
from src.io import files
from src.maths import pixels
from src.maths.networks import ImageShape
from src.maths.pixels import Normalisation, Space, Whitening

DATA = Path("data")
METADATA_KEY = "ast"
RECORD = "record"  # its key in a JSON artifact
PROVENANCE = "provenance"  # its key in a record

Dtypes = Mapping[str, torch.dtype | tuple[torch.dtype, ...]]  # of tensors by name; a tuple allows several


@dataclass(frozen=True)
class Record:
    """What made an artifact: the settings that matter, the seed among them, and the digests of the files it was made from.

    Its provenance is what else its bytes may depend on: code, packages, share of the machine. No artifact is refused for it.
    """

    kind: str
    settings: Mapping[str, Any]
    inputs: Mapping[str, str] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def plain(self) -> dict[str, Any]:
        """As JSON gives it back."""
        return dict(json.loads(json.dumps(vars(self))))


@dataclass(frozen=True)
class Split:
    """Real images of one split: integers (N, C, H, W), pixel = integer / pixel_max; labels (N,)."""

    images: Tensor  # uint8
    labels: Tensor  # int64


@dataclass(frozen=True)
class Statistics:
    """What `prepare` found out about a data set."""

    classes: tuple[str, ...]
    channels: int
    size: int  # side in pixels
    pixel_max: int
    mean: tuple[float, ...]  # (C,) of the training split's pixels
    std: tuple[float, ...]
    source_mean: tuple[float, ...]  # (C,) of the source's training images, before a validation split is cut off: as published
    source_std: tuple[float, ...]
    counts: Mapping[str, Mapping[str, int]]  # split -> class name -> images
    source_sha256: str
    skipped: tuple[str, ...]  # images that can't be read

    @property
    def shape(self) -> ImageShape:
        return ImageShape(self.channels, self.size, len(self.classes))


@dataclass(frozen=True)
class SyntheticSet:
    """All that training a student takes. In pixels, so that it means the same to whoever normalises them."""

    pixels: Tensor  # (S, C, H, W), not bound to [0, 1]
    labels: Tensor  # (S,) classes, or (S, K) probabilities in float32
    syn_lr: Tensor  # ()

    @property
    def classes(self) -> Tensor:
        """(S,), the likeliest class of each image."""
        return self.labels.argmax(dim=1) if self.labels.is_floating_point() else self.labels

    def sha256(self) -> str:
        """The same for the same tensors, whatever file they are in."""
        return files.checksum({}, {"pixels": self.pixels, "labels": self.labels, "syn_lr": self.syn_lr})


@dataclass(frozen=True)
class Snapshots:
    """Synthetic images at several iterations; none of a set that is not distilled."""

    iterations: Tensor  # (n,)
    pixels: Tensor  # (n, S, C, H, W), or (0,)


# -- where they lie


def dataset_folder(name: str) -> Path:
    return DATA / "prepare" / name


def split_file(dataset: str, split: str) -> Path:
    return dataset_folder(dataset) / f"{split}.safetensors"


def statistics_file(dataset: str) -> Path:
    return dataset_folder(dataset) / "statistics.json"


def space_file(dataset: str) -> Path:
    return dataset_folder(dataset) / "space.safetensors"


# what DVC takes for the experts of a run without any, as it puts None for null; in git, as a stage's dependency must be there
NO_EXPERTS = DATA / "experts" / "None"


def trajectories_folder(experts: str) -> Path:
    return DATA / "experts" / experts / "trajectories"


def trajectory_file(experts: str, index: int) -> Path:
    return trajectories_folder(experts) / f"{index:03d}.safetensors"


def expert_curves_file(experts: str) -> Path:
    return DATA / "experts" / experts / "curves.csv"


def synthetic_file(run: str) -> Path:
    return DATA / "distill" / run / "synthetic.safetensors"


def snapshots_file(run: str) -> Path:
    return DATA / "distill" / run / "snapshots.safetensors"


def history_file(run: str) -> Path:
    return DATA / "distill" / run / "history.csv"


def metrics_file(run: str) -> Path:
    """Apart from the other artifacts, which DVC keeps: these small files stay in git."""
    return DATA / "metrics" / f"{run}.json"


def students_file(run: str) -> Path:
    return DATA / "evaluate" / run / "students.csv"


def networks_file(run: str) -> Path:
    return DATA / "evaluate" / run / "networks.csv"


def predictions_file(run: str) -> Path:
    return DATA / "evaluate" / run / "predictions.csv"


def report_file(suffix: str) -> Path:
    return DATA / "report" / f"report.{suffix}"


# -- what they are, so precisely that none is taken for another one of its folder

SPACE, STATISTICS, SYNTHETIC, SNAPSHOTS = "space", "statistics", "synthetic set", "snapshots"


def split_kind(split: str) -> str:
    return f"{split} split"


def trajectory_kind(index: int) -> str:
    return f"trajectory {index:03d}"  # as its file is named


# -- how they are made again, for error sentences


def remake(stage: str, name: str) -> str:
    option = {"prepare": "dataset", "experts": "experts", "distill": "run", "evaluate": "run"}[stage]
    return f"make it with `python -m src.cli {stage} --{option} {name}`"


# -- real images


def save_split(dataset: str, split: str, value: Split, record: Record) -> None:
    tensors = {"images": value.images, "labels": value.labels}
    _save(split_file(dataset, split), tensors, replace(record, kind=split_kind(split)))


def load_split(dataset: str, split: str) -> Split:
    found = _load(
        split_file(dataset, split),
        split_kind(split),
        remake("prepare", dataset),
        {"images": torch.uint8, "labels": torch.int64},
    )
    return Split(found["images"], found["labels"])


def save_statistics(dataset: str, value: Statistics, record: Record) -> None:
    files.write_json(statistics_file(dataset), files.sealed({**vars(value), RECORD: replace(record, kind=STATISTICS).plain()}))


def load_statistics(dataset: str) -> Statistics:
    path, remedy = statistics_file(dataset), remake("prepare", dataset)
    found = _read_sealed(path, remedy)
    with files.understood(path, remedy):
        del found[RECORD]
        tuples = {name: tuple(found[name]) for name in ("classes", "mean", "std", "source_mean", "source_std", "skipped")}
        return Statistics(**{**found, **tuples})


def _read_sealed(path: Path, remedy: str) -> dict[str, Any]:
    found = files.read_json(path, remedy)
    with files.understood(path, remedy):
        return files.unsealed(found)


def save_space(dataset: str, value: Space, record: Record) -> None:
    _save(space_file(dataset), dict(vars(value)), replace(record, kind=SPACE))


def load_space(dataset: str) -> Space:
    """What networks read of this data set's pixels."""
    path, remedy = space_file(dataset), remake("prepare", dataset)
    with _open(path, remedy) as file:
        kind = Whitening if "matrix" in file.keys() else Normalisation  # noqa: SIM118, not a dict
    names = [field.name for field in fields(kind)]
    return kind(**_load(path, SPACE, remedy, dict.fromkeys(names, torch.float32)))


def load_inputs(dataset: str, split: str) -> tuple[Tensor, Tensor]:
    """Network input (N, C, H, W) and labels (N,) of a split."""
    found, pixel_max = load_split(dataset, split), load_statistics(dataset).pixel_max
    return pixels.inputs(load_space(dataset), found.images, pixel_max), found.labels


# -- experts


def save_trajectory(experts: str, index: int, thetas: Tensor, record: Record) -> None:
    """Save snapshots theta*_0 .. theta*_T as one tensor (T + 1, P)."""
    # not in the folder of the trajectories, which DVC digests as a whole
    record, apart = replace(record, kind=trajectory_kind(index)), trajectories_folder(experts).parent
    _save(trajectory_file(experts, index), {"theta": thetas}, record, apart)


def read_snapshots(experts: str, index: int, start: int, stop: int) -> Tensor:
    """theta*_start .. theta*_(stop - 1) of one trajectory, (stop - start, P), read as a slice."""
    path = trajectory_file(experts, index)
    with _open(path, remake("experts", experts)) as file:
        snapshots: Tensor = file.get_slice("theta")[start:stop]
    return snapshots


def check_trajectories(experts: str, count: int, record: Record) -> None:
    """Raises ArtifactError unless all `count` trajectories are there, whole, and were made as `record` says."""
    for index in range(count):
        path, remedy = trajectory_file(experts, index), remake("experts", experts)
        check_record(path, replace(record, kind=trajectory_kind(index)), remedy)
        _load(path, trajectory_kind(index), remedy, {"theta": torch.float32})


# -- synthetic sets


def save_synthetic(run: str, value: SyntheticSet, record: Record) -> None:
    _save(synthetic_file(run), dict(vars(value)), replace(record, kind=SYNTHETIC))


def load_synthetic(run: str) -> SyntheticSet:
    return read_synthetic(synthetic_file(run), remake("distill", run))


def read_synthetic(path: Path, remedy: str) -> SyntheticSet:
    """The synthetic set of any file, in float32 where its pixels are of half precision."""
    dtypes: dict[str, torch.dtype | tuple[torch.dtype, ...]] = {"labels": (torch.int64, torch.float32)}
    dtypes |= {"pixels": (torch.float32, torch.float16), "syn_lr": torch.float32}
    found = _load(path, SYNTHETIC, remedy, dtypes)
    return SyntheticSet(**{**found, "pixels": found["pixels"].float()})


def copy_synthetic(run: str, value: SyntheticSet, to: Path, half: bool) -> None:
    """Write the run's synthetic set, as it was read, and its record to a file, with pixels in float16 where `half`."""
    path, tensors = synthetic_file(run), dict(vars(value))
    if half:
        tensors["pixels"] = value.pixels.half()
        if not tensors["pixels"].isfinite().all():
            raise UserError(f"{path} holds pixels beyond {torch.finfo(torch.float16).max:,.0f}: export it without --half")
    _write(to, tensors, _record(path, remake("distill", run)))


def save_snapshots(run: str, value: Snapshots, record: Record) -> None:
    _save(snapshots_file(run), dict(vars(value)), replace(record, kind=SNAPSHOTS))


def load_snapshots(run: str) -> Snapshots:
    dtypes = {"iterations": torch.int64, "pixels": torch.float32}
    return Snapshots(**_load(snapshots_file(run), SNAPSHOTS, remake("distill", run), dtypes))


# -- tensors on disk


def check_record(path: Path, expected: Record, remedy: str) -> None:
    """Raises ArtifactError where the artifact was made from other settings or inputs than `expected` names."""
    changes = differences(path, expected, remedy)
    if changes:
        raise ArtifactError(f"{path} was made differently ({'; '.join(changes[:3])}): {remedy}")


def differences(path: Path, expected: Record, remedy: str) -> list[str]:
    """Every setting and, where `expected` names some, every input in which the artifact's record is another one."""
    found, wanted = _record(path, remedy), expected.plain()
    if not expected.inputs:
        wanted["inputs"] = found.get("inputs")
    return differing({**found, PROVENANCE: None}, {**wanted, PROVENANCE: None})


def provenance_differences(path: Path, expected: Record, remedy: str) -> list[str]:
    """Every part of the artifact's provenance that is another one in `expected`."""
    return differing(_record(path, remedy).get(PROVENANCE), expected.plain()[PROVENANCE])


def _record(path: Path, remedy: str) -> dict[str, Any]:
    if path.suffix == ".json":
        return dict(_read_sealed(path, remedy)[RECORD])
    with _open(path, remedy) as file:
        found = _metadata(file, path, remedy)
    found.pop(files.CHECKSUM, None)
    return found


def differing(found: Any, wanted: Any, place: str = "") -> list[str]:
    """Every value in which two records, or parts of such as JSON gives them back, are not the same, with its dotted name."""
    if isinstance(found, dict) and isinstance(wanted, dict):
        keys = sorted({*found, *wanted})
        return [line for key in keys for line in differing(found.get(key), wanted.get(key), f"{place}.{key}")]
    name = place.removeprefix(".").removeprefix("settings.").removeprefix("inputs.")
    return [] if found == wanted else [f"{name} was {found}, is {wanted}"]


def _save(path: Path, tensors: dict[str, Tensor], record: Record, folder: Path | None = None) -> None:
    _write(path, tensors, record.plain(), folder)


def _write(path: Path, tensors: dict[str, Tensor], about: dict[str, Any], folder: Path | None = None) -> None:
    metadata = json.dumps({**about, files.CHECKSUM: files.checksum(about, tensors)}, sort_keys=True)
    files.write_tensors(path, tensors, {METADATA_KEY: metadata}, folder)


def _load(path: Path, kind: str, remedy: str, dtypes: Dtypes) -> dict[str, Tensor]:
    """All tensors, of the kind, names and dtypes expected, finite, and as they were written."""
    found_kind, found = read_whole(path, remedy)
    allowed = {name: one if isinstance(one, tuple) else (one,) for name, one in dtypes.items()}
    fits = found.keys() == allowed.keys() and all(tensor.dtype in allowed[name] for name, tensor in found.items())
    if found_kind != kind or not fits:
        raise ArtifactError(f"{path} is a '{found_kind}', not a '{kind}' with {', '.join(dtypes)}: {remedy}")
    for name, tensor in found.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise ArtifactError(f"{path} holds numbers in '{name}' that are not finite: {remedy}")
    return found


def read_whole(path: Path, remedy: str) -> tuple[str, dict[str, Tensor]]:
    """Kind and tensors of any artifact; raises ArtifactError where they are not as they were written."""
    with _open(path, remedy) as file:
        about = _metadata(file, path, remedy)
        found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, not a dict
    checksum = about.pop(files.CHECKSUM, None)
    if checksum != files.checksum(about, found):
        raise ArtifactError(f"{path} is damaged, as its checksum does not fit: {remedy}")
    return str(about.get("kind")), found


def _metadata(file: Any, path: Path, remedy: str) -> dict[str, Any]:
    try:
        return dict(json.loads(file.metadata()[METADATA_KEY]))
    except (KeyError, TypeError, ValueError):
        raise ArtifactError(f"{path} carries no record of what made it: {remedy}") from None


def _open(path: Path, remedy: str) -> Any:
    try:
        return safe_open(path, framework="pt")
    except FileNotFoundError:
        raise ArtifactError(f"{path} is missing: {remedy}") from None
    except (OSError, SafetensorError) as error:
        raise ArtifactError(f"{path} is damaged or no safetensors file ({error}): {remedy}") from None
