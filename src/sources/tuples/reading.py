"""A source of tuples read whole: its items as numbers, its rows, and what there is to say of it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from src.ground.errors import DataError
from src.ground.seeding import seed_of
from src.maths import spectrograms
from src.maths.pixels import Normalisation
from src.settings.datasets import AudioModality, Dataset, FeaturesModality, ImageModality, Modality, TextModality, held
from src.sources import flaws, reading
from src.sources.images import Shape
from src.sources.tuples import frozen, known, pictures, sounds, tables, texts
from src.sources.tuples.frozen import Encoder
from src.sources.tuples.raw import RawItems, RawTuples
from src.store.values import VALUES, Items, TupleSplit, TupleStatistics

FULL_SCALE = 32768.0  # of samples of 16 bits
NOUNS = {"image": "picture", "audio": "sound", "vector": "vector"}  # by kinds whose items are in one split alone
TEXT = 3  # dimensions of texts as characters (n, numbers, characters)


@dataclass(frozen=True)
class TupleSource:
    """A data set of tuples."""

    splits: Mapping[str, TupleSplit]
    pixel_max: int
    broken: Mapping[str, str]  # pictures whose rows were left out, as they can't be read -> why
    notes: tuple[str, ...]
    problems: tuple[str, ...]  # sentences: what spoils what the splits measure
    sha256: str  # of all items, and of the rows and splits that the source itself has; of nothing that is drawn


def read(settings: Dataset, name: str, seed: int) -> TupleSource:
    """The source of the data set `name` of the section prepare, where `seed` is the root seed. Raises DataError."""
    assert settings.modalities is not None
    with reading.naming(name):
        _check_known(settings)
        state = seed_of(seed, "prepare", name) % 2**32
        found = known.read(settings, state) if settings.source in known.KNOWN else tables.read(settings, state)
        source = _made(found, settings.modalities)
    if settings.sha256 not in (None, source.sha256):
        text = f"prepare.{name}: the source {settings.path or settings.source} has the sha256 {source.sha256}"
        raise DataError(f"{text}, not prepare.{name}.sha256: restore its items, or change the setting")
    return source


def _check_known(settings: Dataset) -> None:
    """A known source has modalities of its own, and no columns or rows; one that is installed lies nowhere else."""
    have, modalities = known.KNOWN.get(settings.source), settings.modalities or {}
    if have is None:
        return
    if [(name, modality.kind) for name, modality in modalities.items()] != list(have.items()):
        listed = ", ".join(f"{name} ({kind})" for name, kind in have.items())
        raise DataError(f"{settings.source} has the modalities {listed}: name these, with their kinds and in this order")
    of_tables = [f"column of the modality {name}" for name, modality in modalities.items() if modality.column is not None]
    of_tables += ["skip_broken"] if settings.skip_broken else []
    if of_tables:
        raise DataError(f"the setting {of_tables[0]} is for tables, not for {settings.source}: take it out")
    if settings.path is not None and not known.is_recorded(settings):
        raise DataError(f"{settings.source} comes with scikit-learn, and is read from no other place: leave out the path")


def _made(found: RawTuples, modalities: Mapping[str, Modality]) -> TupleSource:
    """A modality at a time, so that no more than one is held twice."""
    encoders = {name: frozen.encoder(own) for name, own in modalities.items() if isinstance(own, FeaturesModality)}
    parts: dict[str, dict[str, Items]] = {split: {} for split in found.splits}
    columns: dict[str, list[Tensor]] = {split: [] for split in found.splits}
    digest, problems = hashlib.sha256(json.dumps(found.told).encode()), list[str]()
    for place, (name, modality) in enumerate(modalities.items()):
        raw, encoder = found.items[name], encoders.get(name)
        whole = _items(raw, modality) if encoder is None else _encoded(raw, encoder, name)
        for content in _contents(name, whole, None if encoder is None else frozen.digest(raw, encoder)):
            digest.update(content)
        if held(modality) in NOUNS:
            problems += _shared(raw, raw.values if encoder else _plain(whole), NOUNS[held(modality)], found, place)
        for split, rows in found.splits.items():
            used, column = torch.from_numpy(rows[:, place]).unique(return_inverse=True)
            parts[split][name] = whole.at(used)
            columns[split].append(column)
    splits = {split: TupleSplit(own, torch.stack(columns[split], dim=1)) for split, own in parts.items()}
    return TupleSource(splits, found.pixel_max, found.broken, found.notes, tuple(problems), digest.hexdigest())


def _shared(raw: RawItems, contents: Iterable[Any], noun: str, found: RawTuples, place: int) -> Iterator[str]:
    """Of the modality at this place; the same words may be said of items of several splits."""
    whole = flaws.digests_of(contents)
    used = {split: np.unique(rows[:, place]) for split, rows in found.splits.items()}
    names = raw.names or [f"{noun} {number}" for number in range(len(whole))]
    return flaws.shared(noun, {split: whole[own] for split, own in used.items()}, lambda split, one: names[used[split][one]])


def _plain(whole: Items) -> Any:
    """What an item is, where no encoder has read it: of sounds the waves, of which a spectrogram is an impression."""
    return (whole.values if whole.waves is None else whole.waves).contiguous().numpy()


def _contents(name: str, whole: Items, origin: str | None) -> Iterator[Any]:
    """What a digest takes of a modality's items: of an encoder's vectors and of spectrograms, which machines round in their own
    ways, what they are made from.
    """
    for key, tensor in whole.tensors(name).items():
        yield json.dumps([key, list(tensor.shape)]).encode()
        if key != f"{VALUES}{name}" or (origin is None and whole.waves is None):
            yield tensor.contiguous().numpy().data
    if origin is not None:
        yield origin.encode()


def _encoded(raw: RawItems, encoder: Encoder, title: str) -> Items:
    words = _words(raw) if held(encoder.settings) == "text" else ()
    return Items(frozen.vectors(raw, encoder, title), torch.tensor(raw.groups, dtype=torch.int64), words)


def _words(raw: RawItems) -> tuple[str, ...]:
    return tuple(" ".join(text.split()) for text in raw.values)


def _items(raw: RawItems, modality: Modality) -> Items:
    groups = torch.tensor(raw.groups, dtype=torch.int64)
    if isinstance(modality, ImageModality):
        return Items(_pictures(raw, modality), groups)
    if isinstance(modality, TextModality):
        words = _words(raw)
        return Items(torch.from_numpy(texts.columns(words, modality.length, modality.numbers)), groups, words)
    if isinstance(modality, AudioModality):
        heard = [sounds.decoded(content, name) for content, name in zip(raw.values, raw.names, strict=True)]
        waves, rate = sounds.of_one_length(heard, raw.names, modality.seconds)
        shown = spectrograms.spectrograms(torch.from_numpy(waves).float() / FULL_SCALE, rate, modality.size)
        return Items(shown, groups, waves=torch.from_numpy(waves))
    length = len(raw.values[0])
    for value, name in zip(raw.values, raw.names, strict=True):
        if len(value) != length:
            raise DataError(f"{name} has {len(value)} numbers, {raw.names[0]} {length}: bring all vectors to one length")
    return Items(torch.from_numpy(np.stack(raw.values).astype(np.float32)), groups)


def _pictures(raw: RawItems, modality: ImageModality) -> Tensor:
    """(n, C, H, W)."""
    if isinstance(raw.values[0], np.ndarray):
        if modality.size is not None or modality.channels is not None:
            raise DataError("the images of a known source have their own size and channels: leave both out")
        return torch.from_numpy(np.stack(raw.values)).permute(0, 3, 1, 2).contiguous()
    if modality.size is None:
        raise DataError("images of a table have no common size: set the modality's size")
    return pictures.decoded(raw.values, raw.names, Shape(modality.channels or 3, modality.size))


def statistics(source: TupleSource, settings: Dataset) -> TupleStatistics:
    """Counts of tuples by split, and what an item of each modality is."""
    assert settings.modalities is not None
    counts = {split: {"tuples": len(value.rows)} for split, value in source.splits.items()}
    items = source.splits["train"].items
    return TupleStatistics(
        classes=(),
        channels=0,
        size=0,
        pixel_max=source.pixel_max,
        mean=(),
        std=(),
        source_mean=(),
        source_std=(),
        counts=counts,
        source_sha256=source.sha256,
        skipped=tuple(source.broken),
        modalities=tuple(
            (name, _kind(modality), tuple(items[name].values.shape[1:])) for name, modality in settings.modalities.items()
        ),
    )


def _kind(modality: Modality) -> str:
    """As whatever goes by the items has it: vectors of texts have their words beside them, as texts do."""
    if isinstance(modality, FeaturesModality):
        return "text" if held(modality) == "text" else "vector"
    return modality.kind


def space(source: TupleSource) -> Normalisation:
    """Mean and standard deviation of each number of a tuple (D,): of a picture's channel, or of all of a modality's numbers.

    Texts stay as they are: their characters have the deviation 1, and what is behind a text is 0.
    """
    means, deviations = [], []
    for own in source.splits["train"].items.values():
        values = own.values.float() / (source.pixel_max if own.values.dtype == torch.uint8 else 1)
        axes = (0, 2, 3) if values.dim() == 4 else tuple(range(values.dim()))
        std, mean = torch.std_mean(values.double(), dim=axes, correction=0, keepdim=True)
        if own.texts and values.dim() == TEXT:
            std, mean = torch.ones_like(std), torch.zeros_like(mean)
        shape = values.shape[1:]
        means.append(mean[0].expand(shape).flatten())
        deviations.append(torch.where(std > 0, std, torch.ones_like(std))[0].expand(shape).flatten())
    return Normalisation(torch.cat(means).float(), torch.cat(deviations).float())
