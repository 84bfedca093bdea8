"""Scores beyond accuracy as the page, the table and the screen show them: their names, what they say, and their figures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from src.maths.scores_beyond import Estimate

DIFFERENCES = ("HLR", "IOR")  # points of accuracy, with a sign; the others are shares, in percent
SAYS: Mapping[str, str] = {
    "HLR": "hard label recovery: points of test accuracy that all real images teach beyond the run's own, with hard labels "
    "for both; lower is better",
    "IOR": "improvement over random: points of test accuracy above as many random real images, by the same protocol; higher "
    "is better",
    "LRS": "label-robust score: half of IOR minus half of HLR, put on an exponential scale from 0 to 100; higher is better, "
    "26.9 where both are equal",
    "ARS": "augmentation-robust score: the mean of IOR with and without augmentation of the students' training, on the same "
    "scale; higher is better, 26.9 where random images do as well",
}  # in the order of columns


@dataclass(frozen=True)
class Standing:
    """One run's scores by name, those alone that could be taken, and the runs that it was set beside."""

    scores: Mapping[str, Estimate]
    beside: tuple[str, ...]


@dataclass(frozen=True)
class Standings:
    """Of all runs that have any score; and a sentence a score and reason on runs that lack it."""

    rows: Mapping[str, Standing]  # by run
    lacking: tuple[str, ...] = ()

    @property
    def columns(self) -> tuple[str, ...]:
        """Scores that some run has."""
        return tuple(name for name in SAYS if any(name in row.scores for row in self.rows.values()))

    def cells(self, run: str, mark: str = "", missing: str = "-") -> tuple[str, ...]:
        """A run's figures with a mark, a cell a column."""
        found = self.rows[run].scores if run in self.rows else {}
        return tuple(figure(name, found[name]) + mark if name in found else missing for name in self.columns)

    @property
    def notes(self) -> tuple[str, ...]:
        """What each column says, and what is not there."""
        return (*(f"{name}, {SAYS[name]}." for name in self.columns), *self.lacking)


def figure(name: str, score: Estimate) -> str:
    """A score with its deviation, in points or in percent."""
    shown = f"{100 * score.mean:{'+' if name in DIFFERENCES else ''}.1f}".replace("-", "\N{MINUS SIGN}")
    return f"{shown} ± {100 * score.std:.1f}"


def unit(name: str) -> str:
    return f"{name}, {'points' if name in DIFFERENCES else '%'}"


def table(standings: Standings, runs: Mapping[str, str]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Header and rows, of those of these runs that have a score; a run's mark goes with its figures."""
    header = ("run", *(unit(name) for name in standings.columns), "set beside")
    shown = {run: mark for run, mark in runs.items() if run in standings.rows}
    return header, [(run, *standings.cells(run, mark), ", ".join(standings.rows[run].beside)) for run, mark in shown.items()]
