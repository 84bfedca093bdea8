"""Where the student starts, and the weight of its loss: AST's parts 4 and 6."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from src.settings.distillation import Distillation


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
