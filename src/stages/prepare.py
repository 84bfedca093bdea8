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
from src.io.sources import SOURCES, RealImages
from src.maths import initialisation, pixels


def run(params: Params, name: str) -> None:
    """Prepare the data set `name`."""
    settings = params.dataset(name)
    real = SOURCES[settings.source]()
    splits = _split(name, real, settings, params.seed)
    statistics = _statistics(real, splits)
    _check_runs(params, name, statistics)
    record = Record("split", {"seed": params.seed, "prepare": settings.model_dump()}, {"source": statistics.source_sha256})
    for split, value in splits.items():
        artifacts.save_split(name, split, value, record)
    artifacts.save_statistics(name, statistics)
    sizes = ", ".join(f"{len(value.labels)} {split}" for split, value in splits.items())
    progress.say(f"{name}: {len(real.classes)} classes of {real.images.shape[-1]}x{real.images.shape[-2]} images: {sizes}")


def _split(name: str, real: RealImages, settings: Dataset, seed: int) -> Mapping[str, Split]:
    """Stratified by class, so that every split has the classes in the same proportions."""
    everything, labels = np.arange(len(real.labels)), real.labels.numpy()
    state = seed_of(seed, "prepare", name) % 2**32
    try:
        rest, test = train_test_split(everything, test_size=settings.test_fraction, stratify=labels, random_state=state)
        share = settings.val_fraction / (1 - settings.test_fraction)
        train, val = train_test_split(rest, test_size=share, stratify=labels[rest], random_state=state)
    except ValueError as error:
        raise DataError(f"prepare.{name}: can't be split by class ({error}): use other fractions") from None
    return {
        split: Split(real.images[np.sort(index)], real.labels[np.sort(index)])
        for split, index in (("train", train), ("val", val), ("test", test))
    }


def _statistics(real: RealImages, splits: Mapping[str, Split]) -> Statistics:
    normalisation = pixels.fit(splits["train"].images.float() / real.pixel_max)
    counts = {}
    for split, value in splits.items():
        numbers = torch.bincount(value.labels, minlength=len(real.classes)).tolist()
        counts[split] = dict(zip(real.classes, numbers, strict=True))
    return Statistics(
        classes=real.classes,
        channels=real.images.shape[1],
        size=real.images.shape[-1],
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
