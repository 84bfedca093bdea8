"""prepare: real images of a source -> train, validation and test splits, their statistics, and the space of the networks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch

from src.ground.errors import DataError
from src.maths import initialisation, networks, pixels
from src.maths.networks import Shape
from src.maths.pixels import Space
from src.process import progress
from src.settings.datasets import Dataset
from src.settings.resolved import DataSet
from src.sources import flaws, reading, sentences
from src.sources.parts import divided
from src.sources.reading import Source
from src.stages.records import prepared_record
from src.store import busy, provenance
from src.store.store import Store
from src.store.values import Split, Statistics, TupleSplit


def run(store: Store, dataset: DataSet) -> None:
    """Prepare a data set."""
    with busy.alone("prepare", dataset.name):
        _run(store, dataset)


def _run(store: Store, dataset: DataSet) -> None:
    if dataset.settings.modalities is not None:
        _run_tuples(store, dataset)
        return
    name, settings = dataset.name, dataset.settings
    source = reading.read(settings, name)
    parts = divided(source, settings, name, dataset.seed)
    splits = {split: part.of(source) for split, part in parts.items()}
    statistics = _statistics(source, splits)
    for run, asked in dataset.asked.items():
        if asked.drawn is not None:
            initialisation.check_ipc(asked.drawn, statistics.counts["train"], f"runs.{run}.ipc")
    _check_runs(dataset, statistics.shape, len(statistics.classes))
    space = _space(settings, splits["train"], source.pixel_max)
    _save(store, dataset, splits, space, statistics)
    _say(name, statistics, source, dataset.seed)
    for problem in flaws.problems(source, parts):
        progress.say(f"{name}: warning: {problem}")


def _run_tuples(store: Store, dataset: DataSet) -> None:
    from src.sources.tuples import reading as tuples  # reads what images in classes have no use for

    name = dataset.name
    source = tuples.read(dataset.settings, name, dataset.seed)
    statistics = tuples.statistics(source, dataset.settings)
    count = statistics.counts["train"]["tuples"]
    for run, asked in dataset.asked.items():
        if asked.drawn is not None and asked.drawn > count:
            raise DataError(
                f"runs.{run}.ipc: {asked.drawn} exceeds the {count} tuples of the training split: set it to {count} or less"
            )
    _check_runs(dataset, statistics.shape, 1)
    _save(store, dataset, source.splits, tuples.space(source), statistics)
    for split, value in source.splits.items():
        items = ", ".join(f"{modality} {len(own.groups):,}" for modality, own in value.items.items())
        progress.say(f"{name}: {split}: {len(value.rows):,} tuples of items: {items}")
    for line in source.notes:
        progress.say(f"{name}: {line}")
    for problem in source.problems:
        progress.say(f"{name}: warning: {problem}")


def _save(
    store: Store,
    dataset: DataSet,
    splits: Mapping[str, Split] | Mapping[str, TupleSplit],
    space: Space,
    statistics: Statistics,
) -> None:
    record = replace(prepared_record(dataset, statistics.source_sha256), provenance={"packages": provenance.packages()})
    for split, value in splits.items():
        store.save_split(dataset.name, split, value, record)
    store.save_space(dataset.name, space, record)
    store.save_statistics(dataset.name, statistics, record)


def _space(settings: Dataset, train: Split, pixel_max: int) -> Space:
    if settings.whitening == "zca":
        return pixels.fit_whitening(train.images, pixel_max, settings.zca_eps)
    return pixels.fit_normalisation(train.images, pixel_max)


def _statistics(source: Source, splits: Mapping[str, Split]) -> Statistics:
    own = pixels.fit_normalisation(splits["train"].images, source.pixel_max)
    whole = pixels.fit_normalisation(source.splits["train"].images, source.pixel_max)
    counts = {}
    for split, value in splits.items():
        numbers = torch.bincount(value.labels, minlength=len(source.classes)).tolist()
        counts[split] = dict(zip(source.classes, numbers, strict=True))
    return Statistics(
        classes=source.classes,
        channels=splits["train"].images.shape[1],
        size=splits["train"].images.shape[-1],
        pixel_max=source.pixel_max,
        mean=tuple(own.mean.tolist()),
        std=tuple(own.std.tolist()),
        source_mean=tuple(whole.mean.tolist()),
        source_std=tuple(whole.std.tolist()),
        counts=counts,
        source_sha256=source.sha256(),
        skipped=source.skipped,
    )


def _check_runs(dataset: DataSet, shape: Shape, classes: int) -> None:
    """What a run asks for and can't have is told now, not after hours of expert training."""
    specs = {name: spec for asked in dataset.asked.values() for name, spec in asked.networks.items()}
    for name, spec in specs.items():
        networks.check(spec, shape, f"networks.{name}")
    for run, asked in dataset.asked.items():
        if asked.drawn is not None:
            initialisation.check_batch(asked.distillation.batch, asked.drawn * classes, f"runs.{run}.distill.batch_syn")


def _say(name: str, statistics: Statistics, source: Source, seed: int) -> None:
    """Another seed draws other images for the splits that the source does not have, the test split among them."""
    own = [split for split in statistics.counts if split not in source.splits]
    drawn = f"; {' and '.join(own)} drawn by seed {seed}" if own else ""
    sizes = ", ".join(f"{sum(counts.values()):,} {split}" for split, counts in statistics.counts.items())
    shape = f"{statistics.channels}x{statistics.size}x{statistics.size}"
    progress.say(f"{name}: {len(statistics.classes)} classes of {shape} images: {sizes}{drawn}")
    for line in sentences.of_source(source.notes, source.left_out, source.broken):
        progress.say(f"{name}: {line}")
