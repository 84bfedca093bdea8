"""prepare: real images of a source -> train, validation and test splits, and statistics of the training split."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from sklearn.model_selection import train_test_split

from src.ground.errors import DataError
from src.ground.params import Params
from src.ground.seeding import seed_of
from src.ground.settings import Dataset
from src.io import artifacts, progress
from src.io.artifacts import Record, Split, Statistics
from src.io.sources import reading
from src.io.sources.reading import RealSplit, Source
from src.maths import initialisation, pixels


def run(params: Params, name: str) -> None:
    """Prepare the data set `name`."""
    settings = params.dataset(name)
    real = reading.read(settings, name)
    splits = _split(name, real, settings, params.seed)
    statistics = _statistics(real, splits)
    _check_runs(params, name, statistics)
    record = Record("split", {"seed": params.seed, "prepare": settings.model_dump()}, {"source": statistics.source_sha256})
    for split, value in splits.items():
        artifacts.save_split(name, split, value, record)
    artifacts.save_statistics(name, statistics)
    sizes = ", ".join(f"{len(value.labels)} {split}" for split, value in splits.items())
    height, width = splits["train"].images.shape[-2:]
    progress.say(f"{name}: {len(real.classes)} classes of {width}x{height} images: {sizes}")


def _split(name: str, real: Source, settings: Dataset, seed: int) -> Mapping[str, Split]:
    """The source's own splits, and those it lacks cut off its training split."""
    state = seed_of(seed, "prepare", name) % 2**32
    splits, rest, left = dict(real.splits), real.splits["train"], 1.0
    for split, fraction in (("test", settings.test_fraction), ("val", settings.val_fraction)):
        if split not in splits:
            rest, splits[split] = _cut(name, rest, fraction / left, state)
            left -= fraction
    splits["train"] = rest
    return {split: Split(splits[split].images, splits[split].labels) for split in ("train", "val", "test")}


def _cut(name: str, real: RealSplit, share: float, state: int) -> tuple[RealSplit, RealSplit]:
    """Stratified by class, so that both parts have the classes in the same proportions."""
    labels = real.labels.numpy()
    try:
        parts = train_test_split(np.arange(len(labels)), test_size=share, stratify=labels, random_state=state)
    except ValueError as error:
        raise DataError(f"prepare.{name}: can't be split by class ({error}): use other fractions") from None
    rest, cut = (RealSplit(real.images[np.sort(index)], real.labels[np.sort(index)]) for index in parts)
    return rest, cut


def _statistics(real: Source, splits: Mapping[str, Split]) -> Statistics:
    normalisation = pixels.fit(splits["train"].images.float() / real.pixel_max)
    counts = {}
    for split, value in splits.items():
        numbers = torch.bincount(value.labels, minlength=len(real.classes)).tolist()
        counts[split] = dict(zip(real.classes, numbers, strict=True))
    return Statistics(
        classes=real.classes,
        channels=splits["train"].images.shape[1],
        size=splits["train"].images.shape[-1],
        pixel_max=real.pixel_max,
        mean=tuple(normalisation.mean.tolist()),
        std=tuple(normalisation.std.tolist()),
        counts=counts,
        source_sha256=real.sha256(),
    )


def _check_runs(params: Params, name: str, statistics: Statistics) -> None:
    """A run that asks for too many images per class is told now, not after hours of expert training."""
    for run_name, settings in params.runs.items():
        if settings.dataset == name and settings.ipc != "all":
            initialisation.check_ipc(settings.ipc, statistics.counts["train"], f"runs.{run_name}.ipc")
