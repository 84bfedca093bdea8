"""What a target is to the inner loop: a value at one of the student's thetas, and its gradient there."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from src.maths.derivatives import Derivatives
from src.settings.distillation import Distillation


@dataclass(frozen=True)
class Reached:
    """A target's term of the loss, which is a function of theta_step alone."""

    step: int  # n, after how many inner steps
    value: Tensor  # ()
    pull: Tensor  # (P,), the gradient of the value with respect to theta_n


class Target(Protocol):
    """A term of the loss."""

    def reached(self, thetas: Tensor) -> Reached:
        """Of a student that went theta_0 .. theta_N, (N + 1, P)."""
        ...


@dataclass(frozen=True)
class Course:
    """What targets are made from."""

    theta_start: Tensor  # (P,), the student's start, perturbed where part 6 of AST is on
    snapshots: Tensor  # (M, P), theta*_{s+1} .. theta*_{s+M}; none of a student without expert
    first: int  # parameters before this one are not matched
    derivatives: Derivatives
    real: tuple[Tensor, Tensor] | None  # images (R, C, H, W) and labels (R,), where their loss is asked for
    settings: Distillation
    parts: tuple[int, ...] = ()  # of tuples: parameters of each modality's encoder


def made(kinds: Sequence[str], course: Course) -> list[Target]:
    """The targets of these kinds, each a module of this package that has `targets(course)`."""
    modules = [importlib.import_module(f"src.maths.targets.{kind}") for kind in kinds]
    return [target for module in modules for target in module.targets(course)]
