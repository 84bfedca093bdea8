"""What a source of tuples gives: each item of each modality once, and which of them belong together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.int64]  # (N, M), places among the items


@dataclass(frozen=True)
class RawItems:
    """Of one modality: pixels (H, W, C) or bytes of a picture file, texts, waves or bytes of a wav file, vectors."""

    values: Sequence[Any]
    groups: Sequence[int]  # equal for items of all modalities that belong together
    names: Sequence[str] = ()  # for sentences


@dataclass(frozen=True)
class RawTuples:
    """A source whole, and which rows of its items each split has."""

    items: Mapping[str, RawItems]  # by modality
    splits: Mapping[str, Rows]  # train, val and test
    told: Sequence[Any]  # what the source itself says of rows and splits, which is not drawn; as JSON has it
    pixel_max: int = 255
    broken: Mapping[str, str] = field(default_factory=dict)  # pictures whose rows were left out, as they can't be read -> why
    notes: tuple[str, ...] = field(default=())  # sentences: what was found and decided


def paired(groups: Sequence[NDArray[np.int64]], draws: np.random.Generator) -> Rows:
    """Rows that pair items (n_m,) of the same group: each as often as its modality has fewer than the one with most of them."""
    rows = []
    for group in np.unique(groups[0]):
        members = [np.flatnonzero(own == group) for own in groups]
        most = max(map(len, members))
        rows.append(np.stack([np.resize(draws.permutation(own), most) for own in members], axis=1))
    return np.concatenate(rows).astype(np.int64)
