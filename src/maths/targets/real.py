"""The loss on real images that the student ends with: what a synthetic set is for (RaT-BPTT, arXiv 2311.07025)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from src.maths.derivatives import Derivatives
from src.maths.targets.base import Course, Reached

CHUNK = 32  # images differentiated at once: more would take more memory than a step of the student


@dataclass(frozen=True)
class RealLoss:
    """weight * the mean cross-entropy of real images at theta_N."""

    derivatives: Derivatives
    images: Tensor  # (R, C, H, W)
    labels: Tensor  # (R,)
    weight: float

    def reached(self, thetas: Tensor) -> Reached:
        theta = thetas[-1]
        value, pull = torch.zeros_like(theta[0]), torch.zeros_like(theta)
        for images, labels in zip(self.images.split(CHUNK), self.labels.split(CHUNK), strict=True):
            share = self.weight * len(labels) / len(self.labels)
            with torch.no_grad():
                value = value + share * self.derivatives.loss(theta, images, labels)
            pull = pull + share * self.derivatives.first(theta, images, labels)
        return Reached(len(thetas) - 1, value, pull)


def targets(course: Course) -> list[RealLoss]:
    """At the end of the loop."""
    assert course.real is not None and course.settings.real is not None
    return [RealLoss(course.derivatives, *course.real, course.settings.real.weight)]
