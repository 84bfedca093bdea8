"""export of tuples: tensors, pictures, sounds and the nearest texts in a folder. No stage: it makes no artifact."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path
from typing import Any

from torch import Tensor

from src.exchange.exported import record_of, target
from src.maths import contrast, spectrograms
from src.pages import pictures, tuples
from src.process import progress
from src.settings.contrast import Contrast
from src.settings.datasets import AudioModality
from src.settings.resolved import Run
from src.stages.records import check_synthetic, prepared
from src.stages.results import measured
from src.store import files, tensors
from src.store.store import Store
from src.store.values import SyntheticSet, TupleStatistics

TENSORS = "tuples.safetensors"


def run(store: Store, run: Run, folder: Path) -> None:
    """Write a run to `folder`: a tensor for each modality, the similarity that students learn, what can be seen and heard."""
    check_synthetic(store, run)
    prepared(store, run.dataset, "train")
    synthetic, statistics = store.load_synthetic(run.name), store.load_tuple_statistics(run.dataset.name)
    own = dict(zip(statistics.kinds, synthetic.pixels.split(statistics.shape.sizes, dim=1), strict=True))
    shaped = {one.name: own[one.name].unflatten(1, one.shape) for one in statistics.shape.modalities}
    similarity = _similarity(run, statistics, synthetic)
    with target(folder) as place:
        kept = {**shaped, "similarity": similarity, "syn_lr": synthetic.syn_lr}
        tensors.write(place / TENSORS, kept, record_of(store.synthetic_file(run.name)))
        columns = [_column(store, run, statistics, name, values, place) for name, values in shaped.items()]
        rows = [dict(zip(shaped, cells, strict=True)) for cells in zip(*columns, strict=True)]
        files.write_csv(place / "tuples.csv", rows)
        files.write_json(place / "set.json", _card(store, run, statistics, kept))
        files.write_text(place / "README.md", _readme(run, statistics, len(synthetic.labels)))
    progress.say(f"{run.name}: {len(synthetic.labels)} tuples in {folder}")


def _similarity(run: Run, statistics: TupleStatistics, synthetic: SyntheticSet) -> Tensor:
    """The target of each pair of modalities, (P, S, S)."""
    learned = None if run.ipc == "all" else run.distillation.similarity
    return contrast.targets(synthetic.labels, learned, contrast.pairs(len(statistics.kinds))).contiguous()


def _column(store: Store, run: Run, statistics: TupleStatistics, name: str, values: Tensor, place: Path) -> list[str]:
    """What tuples.csv says of a modality: the nearest real text, or the file that is written here."""
    kind, modalities = statistics.kinds[name], run.dataset.settings.modalities or {}
    if kind == "vector":
        return [f"row {number} of {TENSORS}" for number in range(len(values))]
    real = store.load_tuples(run.dataset.name, "train").items[name]
    if kind == "text":
        return tuples.nearest(values.flatten(1), statistics.natural(real.values), real.texts)
    names = [f"{name}-{number:03d}.{'png' if kind == 'image' else 'wav'}" for number in range(len(values))]
    if kind == "image":
        for file, picture in zip(names, values, strict=True):
            pictures.save(picture, place / file)
        return names
    modality = modalities[name]
    assert isinstance(modality, AudioModality) and real.waves is not None
    samples = real.waves.shape[1]
    rate = round(samples / modality.seconds)
    for file, wave in zip(names, spectrograms.waves(values, rate, samples), strict=True):
        (place / file).write_bytes(tuples.wav(wave, rate))
    return names


def _card(store: Store, run: Run, statistics: TupleStatistics, kept: dict[str, Tensor]) -> dict[str, Any]:
    """What a reader of the tensors needs."""
    loss = run.evaluation.contrast or Contrast()
    return {
        "run": run.name,
        "dataset": run.dataset.name,
        "modalities": {name: statistics.kinds[name] for name in statistics.kinds},
        "tensors": {name: list(value.shape) for name, value in kept.items()},
        "pairs": [f"{one} and {other}" for one, other in combinations(statistics.kinds, 2)],
        "syn_lr": kept["syn_lr"].tolist(),
        "loss": loss.model_dump(),
        "network": run.spec.model_dump(mode="json"),
        "evaluation": run.evaluation.model_dump(mode="json"),
        "recall": measured(store, run),
    }


def _readme(run: Run, statistics: TupleStatistics, count: int) -> str:
    names = ", ".join(f"{name} ({kind})" for name, kind in statistics.kinds.items())
    return (
        f"# {run.name}\n\n{count} synthetic tuples of {names}, which stand for the training split of {run.dataset.name}.\n\n"
        f"`{TENSORS}` holds a tensor for each modality: pixels from 0 to 1, spectrograms as shares of 80 decibels, numbers of\n"
        "characters or vectors as they are; `similarity` (pairs, tuples, tuples), the target of the contrastive loss; and\n"
        "`syn_lr`, the learning rate of each encoder. `tuples.csv` names what can be looked at and listened to; texts are the\n"
        "nearest real ones. `set.json` has the loss, the encoders, how students are trained, and their recall.\n"
    )
