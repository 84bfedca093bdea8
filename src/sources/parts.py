"""The splits that a source is used in: its own, and those cut from its training images; one rule for all that ask."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from src.ground.seeding import seed_of
from src.maths import splitting
from src.maths.splitting import Indices
from src.settings.datasets import Dataset
from src.sources import reading
from src.sources.raw import SPLITS
from src.sources.reading import Source
from src.store.values import Split


@dataclass(frozen=True)
class Part:
    """Images of one of the source's splits."""

    split: str
    places: Indices  # ascending

    def of(self, source: Source) -> Split:
        given = source.splits[self.split]
        whole = len(self.places) == len(given.labels)
        return given if whole else Split(given.images[self.places], given.labels[self.places])

    def name(self, source: Source, place: int) -> str:
        """What the part's image at this place is called."""
        return source.names[self.split](int(self.places[place]))


def divided(source: Source, settings: Dataset, name: str, seed: int) -> Mapping[str, Part]:
    """Train, val and test of the data set `name` of the section prepare, where `seed` is the root seed.

    Raises DataError where the images do not allow it.
    """
    cut = fractions(settings, source.splits)
    labels, state = source.splits["train"].labels.numpy(), seed_of(seed, "prepare", name) % 2**32
    with reading.naming(name):
        found = splitting.split(labels, source.classes, cut, settings.train_images, state)
    own = {split: np.arange(len(value.labels)) for split, value in source.splits.items()}
    return {s: Part("train", found[s]) if s in found else Part(s, own[s]) for s in SPLITS}


def fractions(settings: Dataset, splits: Mapping[str, object]) -> Mapping[str, float]:
    """Of the training images, for the splits that a source does not have."""
    both = {"val": settings.val_fraction, "test": settings.test_fraction}
    return {split: fraction for split, fraction in both.items() if split not in splits}
