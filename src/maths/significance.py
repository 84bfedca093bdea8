"""Whether two groups of accuracies differ by more than their scatter: Student's t-test of pairs, or Welch's of groups.

Sources: Student, Biometrika 6 (1908); Welch, Biometrika 34 (1947).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean, variance

LEVEL = 0.05  # of p, below which a difference counts as more than noise


@dataclass(frozen=True)
class Difference:
    """Mean of the second group minus that of the first, and p: how often chance alone would do as much, two-sided."""

    mean: float
    p: float

    @property
    def beyond_noise(self) -> bool:
        return self.p < LEVEL


def welch(first: Sequence[float], second: Sequence[float]) -> Difference:
    """Compare two independent groups, of any variances; p is 1 where neither scatters, or one has fewer than two members."""
    from scipy.stats import t as student_t  # a second to import

    difference = mean(second) - mean(first)
    if min(len(first), len(second)) < 2:
        return Difference(difference, 1.0)
    a, b = variance(first) / len(first), variance(second) / len(second)  # squared standard errors
    if a + b == 0:  # as happens to few figures of small splits: nothing tells what chance would do
        return Difference(difference, 1.0)
    freedom = (a + b) ** 2 / (a**2 / (len(first) - 1) + b**2 / (len(second) - 1))
    return Difference(difference, 2 * float(student_t.sf(abs(difference) / (a + b) ** 0.5, freedom)))


def paired(first: Sequence[float], second: Sequence[float]) -> Difference:
    """Compare two groups whose members belong together, as those of one seed, which share draws, initial images and experts.

    p is 1 where there are fewer than two pairs, or all differ by the same.
    """
    from scipy.stats import t as student_t

    apart = [b - a for a, b in zip(first, second, strict=True)]
    spread = variance(apart) if len(apart) > 1 else 0.0
    if spread == 0:
        return Difference(mean(apart), 1.0)
    return Difference(mean(apart), 2 * float(student_t.sf(abs(mean(apart)) / (spread / len(apart)) ** 0.5, len(apart) - 1)))


def words(difference: Difference, first: str, second: str) -> str:
    """The verdict in a sentence; the means are accuracies as fractions."""
    points, p = f"{100 * abs(difference.mean):.1f} points", f"p = {difference.p:.2g}"
    if not difference.beyond_noise:
        return f"{second} and {first} differ by {points}, which may be noise ({p})"
    return f"{second} is {points} {'above' if difference.mean > 0 else 'below'} {first}, beyond noise ({p})"
