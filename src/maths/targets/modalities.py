"""Snapshots of the expert as way points, each modality's encoder for itself: the loss is their sum (MTT-VL, LoRS)."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch.nn.functional as F
from torch import Tensor

from src.maths.targets.base import Course, Reached
from src.maths.targets.snapshots import WayPoint, way_points


@dataclass(frozen=True)
class Part:
    """A way point of one encoder's parameters, which stand in theta after some and before others."""

    point: WayPoint
    before: int
    behind: int

    def reached(self, thetas: Tensor) -> Reached:
        own = self.point.reached(thetas[:, self.before : thetas.shape[1] - self.behind])
        return replace(own, pull=F.pad(own.pull, (self.before, self.behind)))


def targets(course: Course) -> list[Part]:
    """Modality by modality."""
    found, whole, before = [], len(course.theta_start), 0
    for size in course.parts:
        part = slice(before, before + size)
        points = way_points(course.theta_start[part], course.snapshots[:, part], course.settings)
        found += [Part(point, before, whole - before - size) for point in points]
        before += size
    return found
