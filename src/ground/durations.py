"""Durations as words, one way for the terminal, tables and the report."""

from __future__ import annotations

from itertools import pairwise

UNITS = (("d", 86400), ("h", 3600), ("min", 60), ("s", 1))


def duration(seconds: float) -> str:
    """Words for a number of seconds: '0.76 s', '3 min 20 s', '7 h 5 min', '2 d 3 h'."""
    for (unit, size), (smaller, part) in pairwise(UNITS):
        if seconds >= size:
            return f"{int(seconds // size):,} {unit} {int(seconds % size // part)} {smaller}"
    return f"{seconds:.3g} s"
