"""Scores that set a synthetic set's accuracy beside that of real images: HLR, IOR, LRS and ARS.

Source: DD-Ranking, arXiv 2505.13300, with its weights of one half; accuracies are fractions. Deviations are those of the mean
values' students, taken as independent runs: of a weighted sum the variances add, of a curve they go by its slope.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

LOWEST, HIGHEST = math.exp(-1), math.e  # of the exponential over [-1, 1]


@dataclass(frozen=True)
class Estimate:
    """Mean and standard deviation over students, as fractions."""

    mean: float
    std: float


def hard_label_recovery(full: Estimate, hard: Estimate) -> Estimate:
    """HLR in [-1, 1]: accuracy on all real images, minus that on the synthetic ones with hard labels. Lower is better."""
    return _sum((1.0, full), (-1.0, hard))


def improvement_over_random(synthetic: Estimate, random: Estimate) -> Estimate:
    """IOR in [-1, 1]: accuracy on the synthetic images, minus that on as many random real ones by the same recipe."""
    return _sum((1.0, synthetic), (-1.0, random))


def label_robust(full: Estimate, synthetic: Estimate, random: Estimate, hard: Estimate | None = None) -> Estimate:
    """LRS in [0, 1]: IOR / 2 - HLR / 2, squashed.

    `hard` is the accuracy with hard labels where the synthetic labels are soft. Without it HLR and IOR rest on the same
    students, whose accuracy counts once and whole: synthetic - (random + full) / 2.
    """
    own = ((1.0, synthetic),) if hard is None else ((0.5, synthetic), (0.5, hard))
    return squashed(_sum(*own, (-0.5, random), (-0.5, full)))


def augmentation_robust(augmented: tuple[Estimate, Estimate], plain: tuple[Estimate, Estimate]) -> Estimate:
    """ARS in [0, 1]: the mean improvement over random with and without augmentation, squashed.

    Each pair is the accuracy on the synthetic images and that on as many random real ones.
    """
    return squashed(_sum((0.5, augmented[0]), (-0.5, augmented[1]), (0.5, plain[0]), (-0.5, plain[1])))


def squashed(value: Estimate) -> Estimate:
    """(e^a - e^-1) / (e - e^-1): rising, 0 at a = -1 and 1 at a = 1."""
    span = HIGHEST - LOWEST
    return Estimate((math.exp(value.mean) - LOWEST) / span, value.std * math.exp(value.mean) / span)


def _sum(*terms: tuple[float, Estimate]) -> Estimate:
    """Of independent estimates, each with its weight."""
    mean = math.fsum(weight * value.mean for weight, value in terms)
    return Estimate(mean, math.hypot(*(weight * value.std for weight, value in terms)))
