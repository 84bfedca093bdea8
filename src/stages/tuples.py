"""What the report and MLflow show of a run of tuples."""

from __future__ import annotations

from itertools import combinations

import torch
from torch import Tensor

from src.maths import contrast, retrieval, spectrograms
from src.pages import sheets, tuples
from src.pages.tuples import MOST, Cell, Shown, Similarities
from src.settings.datasets import AudioModality
from src.settings.resolved import Run
from src.store import files
from src.store.store import Store, remake
from src.store.values import SyntheticSet, TupleStatistics


def shown(store: Store, run: Run) -> Shown:
    """One run, whose artifacts are there."""
    statistics, synthetic = store.load_tuple_statistics(run.dataset.name), store.load_synthetic(run.name)
    kept = synthetic.pixels[:MOST].split(statistics.shape.sizes, dim=1)
    columns = [_cells(store, run, statistics, name, own) for name, own in zip(statistics.kinds, kept, strict=True)]
    metrics = files.read_json(store.metrics_file(run.name), remake("evaluate", run.name))
    with files.understood(store.metrics_file(run.name), remake("evaluate", run.name)):
        rows = tuples.recall_rows(metrics, retrieval.names(statistics.shape.names))
    return Shown(
        run.name,
        statistics.shape.names,
        tuple(zip(*columns, strict=True)),
        len(synthetic.labels),
        tuple(_similarities(store, run, statistics, synthetic)),
        rows,
    )


def _cells(store: Store, run: Run, statistics: TupleStatistics, name: str, values: Tensor) -> list[Cell]:
    """A modality of tuples, as rows of its numbers (S, D_m)."""
    kind, shape = statistics.kinds[name], next(one.shape for one in statistics.shape.modalities if one.name == name)
    if kind == "image":
        return [Cell(picture=sheets.single(picture)) for picture in values.unflatten(1, shape)]
    real = store.load_tuples(run.dataset.name, "train").items[name]
    if kind == "text":
        return [Cell(text=text) for text in tuples.nearest(values, statistics.natural(real.values), real.texts)]
    if kind == "audio":
        assert real.waves is not None and run.dataset.settings.modalities is not None
        modality = run.dataset.settings.modalities[name]
        assert isinstance(modality, AudioModality)
        samples, pictures = real.waves.shape[1], values.unflatten(1, shape)
        rate = round(samples / modality.seconds)
        heard = spectrograms.waves(pictures, rate, samples)
        upright = pictures.flip(2)  # high pitches above
        return [Cell(sheets.single(one), "", tuples.sound(wave, rate)) for one, wave in zip(upright, heard, strict=True)]
    return [Cell(text=f"{len(one)} numbers") for one in values]


def _similarities(store: Store, run: Run, statistics: TupleStatistics, synthetic: SyntheticSet) -> list[Similarities]:
    """Before the first iteration, drawn or the initial run's, and after the last; the proxy's is the same for all pairs."""
    settings, names = run.distillation.similarity, statistics.shape.names
    if settings is None or run.ipc == "all":
        return []
    moments, pairs = store.load_snapshots(run.name).labels, contrast.pairs(len(names))
    assert moments is not None, "a similarity is learned over iterations"
    before, after = (contrast.targets(labels, settings, pairs) for labels in (moments[0], synthetic.labels))
    titles = [f"{one} and {other}" for one, other in combinations(names, 2)]
    if settings.kind == "proxy":
        titles, before, after = ["all pairs"], before[:1], after[:1]
    return [
        Similarities(title, tuples.matrix(old), tuples.matrix(new))
        for title, old, new in zip(titles, torch.unbind(before), torch.unbind(after), strict=True)
    ]
