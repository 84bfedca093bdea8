"""Texts as numbers: each character a column that is the same wherever it stands."""

from __future__ import annotations

import functools
import unicodedata
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Columns = NDArray[np.float32]


def columns(texts: Sequence[str], length: int, numbers: int) -> Columns:
    """(n, numbers, length); case makes no difference, and what is beyond a text's end is zero."""
    found = np.zeros((len(texts), numbers, length), dtype=np.float32)
    for place, text in enumerate(texts):
        for position, character in enumerate(plain(text)[:length]):
            found[place, :, position] = column(character, numbers)
    return found


def plain(text: str) -> str:
    """Without case, and of characters that mean the same the same one."""
    return unicodedata.normalize("NFKC", text).casefold().strip()


@functools.cache
def column(character: str, numbers: int) -> Columns:
    """Of one character: drawn from the normal distribution by its number in Unicode, so that no data set has a say in it."""
    return np.random.default_rng([numbers, *map(ord, character)]).standard_normal(numbers).astype(np.float32)
