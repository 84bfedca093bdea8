"""The step of the student that is nearest to the expert's snapshot: automatic trajectories (ATT, arXiv 2407.14245)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from src.maths.targets.base import Course, Reached
from src.maths.targets.snapshots import WayPoint


@dataclass(frozen=True)
class Nearest:
    """Of theta_1 .. theta_N the one nearest to `target` is matched to it, of several as near the last.

    Its value is that of a way point there: which step it is has no gradient, so that later steps have none at all.
    """

    target: Tensor  # (P,)
    scale: Tensor  # (), ||theta_start - target||^2
    by: Literal["l1", "l2"]
    first: int = 0  # parameters before this one are not matched

    def reached(self, thetas: Tensor) -> Reached:
        distances = torch.stack([self._distance(theta) for theta in thetas[1:]])
        distances = distances.nan_to_num(nan=float("inf"), posinf=float("inf"))  # a student that went astray later
        step = len(distances) - int(distances.flip(0).argmin())
        return WayPoint(step, self.target, 1.0, self.scale, self.first).reached(thetas)

    def _distance(self, theta: Tensor) -> Tensor:
        apart = theta[self.first :] - self.target[self.first :]
        return apart.abs().sum() if self.by == "l1" else apart.square().sum()


def targets(course: Course) -> list[Nearest]:
    target = course.snapshots[-1]
    scale = (course.theta_start[course.first :] - target[course.first :]).square().sum()
    return [Nearest(target, scale, course.settings.nearest_by, course.first)]
