"""Snapshots of the expert as way points: the last one (MTT eq. 2), and before it the intermediate ones (AST part 5)."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from src.maths.targets.base import Course, Reached
from src.settings.distillation import Distillation


@dataclass(frozen=True)
class WayPoint:
    """After `step` inner steps the student should be at `target`: weight * ||theta - target||^2 / scale.

    The first parameters may be left out of it, in the scale too (PAD, arXiv 2408.03360: the shallow layers).
    """

    step: int
    target: Tensor  # (P,)
    weight: float  # beta_k
    scale: Tensor  # (), D_k = ||theta_start - target||^2
    first: int = 0  # parameters before this one are not matched

    def distance(self, theta: Tensor) -> Tensor:
        return self.weight * (theta[self.first :] - self.target[self.first :]).square().sum() / self.scale

    def pull(self, theta: Tensor) -> Tensor:
        """The gradient of `distance` with respect to theta, (P,)."""
        matched = 2 * self.weight * (theta[self.first :] - self.target[self.first :]) / self.scale
        return F.pad(matched, (self.first, 0))

    def reached(self, thetas: Tensor) -> Reached:
        theta = thetas[self.step]
        return Reached(self.step, self.distance(theta), self.pull(theta))


def ends(syn_steps: int, expert_epochs: int) -> list[int]:
    """Inner steps n_1 .. n_M at which the way points lie: floor(N / M) * k, and N for the last (20, 3 gives 6, 12, 20)."""
    return [syn_steps // expert_epochs * k for k in range(1, expert_epochs)] + [syn_steps]


def way_points(theta_start: Tensor, targets: Tensor, settings: Distillation, first: int = 0) -> list[WayPoint]:
    """The end point, and before it the intermediate ones where part 5 is on.

    `targets` (M, P) are theta*_{s+1} .. theta*_{s+M}; `theta_start` (P,) is the student's start, perturbed where part 6 is on.
    """
    epochs = settings.expert_epochs
    chosen = range(1, epochs + 1) if settings.intermediate_loss != "off" else [epochs]
    steps = ends(settings.syn_steps, epochs)
    points = []
    for k in chosen:
        weight = k / epochs if settings.intermediate_loss == "ramp" else 1.0
        target = targets[k - 1]
        scale = (theta_start[first:] - target[first:]).square().sum()
        points.append(WayPoint(steps[k - 1], target, weight, scale, first))
    return points


def targets(course: Course) -> list[WayPoint]:
    return way_points(course.theta_start, course.snapshots, course.settings, course.first)
