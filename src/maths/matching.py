"""What the student is matched to: start point, way points, weights. Sources: MTT eq. 2; AST's student side (parts 4 to 6)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from src.settings.distillation import Distillation


@dataclass(frozen=True)
class WayPoint:
    """After `step` inner steps the student should be at `target`: weight * ||theta - target||^2 / scale."""

    step: int
    target: Tensor  # (P,)
    weight: float  # beta_k
    scale: Tensor  # (), D_k = ||theta_start - target||^2

    def distance(self, theta: Tensor) -> Tensor:
        return self.weight * (theta - self.target).square().sum() / self.scale

    def pull(self, theta: Tensor) -> Tensor:
        """The gradient of `distance` with respect to theta, (P,)."""
        return 2 * self.weight * (theta - self.target) / self.scale


def ends(syn_steps: int, expert_epochs: int) -> list[int]:
    """Inner steps n_1 .. n_M at which the way points lie: floor(N / M) * k, and N for the last (20, 3 gives 6, 12, 20)."""
    return [syn_steps // expert_epochs * k for k in range(1, expert_epochs)] + [syn_steps]


def way_points(theta_start: Tensor, targets: Tensor, settings: Distillation) -> list[WayPoint]:
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
        points.append(WayPoint(steps[k - 1], target, weight, (theta_start - target).square().sum()))
    return points


def balance(start_epoch: int, settings: Distillation) -> float:
    """The balanced loss's coefficient: log_5(s - m + 8) for s >= m, 1 / log_5(m - s + 8) below; m = max_start_epoch // 2."""
    if not settings.balanced_loss:
        return 1.0
    late = start_epoch - settings.max_start_epoch // 2
    value = math.log(abs(late) + settings.balance_offset, settings.balance_base)
    return value if late >= 0 else 1 / value


def perturb(theta: Tensor, convolutions: Sequence[slice], strength: float, generator: torch.Generator) -> Tensor:
    """A new theta (P,) whose convolution weights are w + a * (d / ||d||_F) * w with d ~ N(0, 1), one d a layer."""
    theta = theta.clone()
    for part in convolutions if strength else ():
        noise = torch.randn(theta[part].shape, generator=generator).to(theta)
        theta[part] += strength * noise / noise.norm() * theta[part]
    return theta
