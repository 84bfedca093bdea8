"""What `kernels` has, in torch's operations, for a GPU: torch.compile makes a few kernels of each function.

Values are (B, C, H, W) with channels last, stored in bfloat16, float32 or float64 and computed in at least float32. Formulas:
`by_hand`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from src.ground import runtime

Numbers = tuple[Tensor, Tensor]  # (B, C) each


@functools.cache
def made(function: Callable[..., Any], groups: int, eps: float, pool: int) -> Callable[..., Any]:
    """One of the functions below for these settings, compiled for each shape that it meets."""
    return runtime.fused(functools.partial(function, groups, eps, pool))


def forward(
    groups: int, eps: float, pool: int, u: Tensor, bias: Tensor, gain: Tensor, shift: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """v (B, C, H / pool, W / pool), and the norm's center and r (B, C)."""
    value = u.to(gain.dtype)
    if groups == 0:
        center, r = (-bias).expand(u.shape[:2]), torch.ones_like(bias).expand(u.shape[:2])
    else:
        center = _mean(_sum(value) + _pixels(u) * bias, u, groups) - bias
        r = (_mean(_sum((value - _wide(center)).square()), u, groups) + eps).rsqrt()
    slope = gain * r
    y = F.relu(_wide(slope) * value + _wide(shift - slope * center))
    return (F.avg_pool2d(y, 2) if pool == 2 else y).to(u.dtype), center.contiguous(), r.contiguous()


def backward(
    groups: int, eps: float, pool: int, u: Tensor, center: Tensor, r: Tensor, gain: Tensor, shift: Tensor, q: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """From the gradient q of v those of u, gain (C,) and shift (C,)."""
    x, is_open = _normal(u, center, r, gain, shift)
    of_y = torch.where(is_open, _spread(q.to(gain.dtype), u, pool), 0.0)
    of_shift, of_gain = _sum(of_y), _sum(of_y * x)
    of_x = gain[:, None, None] * of_y
    if groups != 0:
        of_x = of_x - _wide(_mean(gain * of_shift, u, groups)) - x * _wide(_mean(gain * of_gain, u, groups))
    return (of_x * _wide(r)).to(u.dtype), of_gain.sum(0), of_shift.sum(0)


def forward_along(
    groups: int,
    eps: float,
    pool: int,
    u: Tensor,
    center: Tensor,
    r: Tensor,
    gain: Tensor,
    shift: Tensor,
    u_d: Tensor,
    bias_d: Tensor,
    gain_d: Tensor,
    shift_d: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """The derivative of v, and of its norm the center and the lean mean(x u_d), (B, C)."""
    x, is_open = _normal(u, center, r, gain, shift)
    along = u_d.to(gain.dtype)
    if groups == 0:
        center_d, lean = (-bias_d).expand(u.shape[:2]), torch.zeros_like(center)
    else:
        center_d = _mean(_sum(along) + _pixels(u) * bias_d, u, groups) - bias_d
        lean = _mean(_sum(x * along) + bias_d * _sum(x), u, groups)
    x_d = (along - _wide(center_d) - x * _wide(lean)) * _wide(r)
    y_d = gain_d[:, None, None] * x + gain[:, None, None] * x_d + shift_d[:, None, None]
    y_d = torch.where(is_open, y_d, 0.0)
    return (F.avg_pool2d(y_d, 2) if pool == 2 else y_d).to(u.dtype), center_d.contiguous(), lean.contiguous()


def backward_along(
    groups: int,
    eps: float,
    pool: int,
    u: Tensor,
    u_d: Tensor,
    center: Tensor,
    r: Tensor,
    center_d: Tensor,
    lean: Tensor,
    gain: Tensor,
    shift: Tensor,
    gain_d: Tensor,
    p: Tensor,
    q: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """From the gradients p of v and q of its derivative those of u, gain (C,) and shift (C,)."""
    x, is_open = _normal(u, center, r, gain, shift)
    x_d = (u_d.to(gain.dtype) - _wide(center_d) - x * _wide(lean)) * _wide(r)
    of_p, of_q = (torch.where(is_open, _spread(one.to(gain.dtype), u, pool), 0.0) for one in (p, q))
    sum_p, sum_px, sum_q, sum_qx, sum_qd = _sum(of_p), _sum(of_p * x), _sum(of_q), _sum(of_q * x), _sum(of_q * x_d)
    of_gain, of_shift = (sum_px + sum_qd).sum(0), sum_p.sum(0)
    of_x = gain[:, None, None] * of_p + gain_d[:, None, None] * of_q
    if groups != 0:
        steep = r * lean
        square = 1 - eps * r * r  # mean(x x)
        mean_p, mean_px = (_mean(gain * a + gain_d * b, u, groups) for a, b in ((sum_p, sum_q), (sum_px, sum_qx)))
        mean_q, pull, mean_qd = (_mean(gain * one, u, groups) for one in (sum_q, sum_qx, sum_qd))
        crossed = steep * (1 - square)  # mean(x x_d)
        tilt = mean_px - steep * pull - pull * crossed - pull * steep * square + mean_qd
        of_x = of_x - _wide(steep) * gain[:, None, None] * of_q - _wide(pull) * x_d
        of_x = of_x - _wide(pull * steep + tilt) * x - _wide(mean_p - steep * mean_q)
    return (of_x * _wide(r)).to(u.dtype), of_gain, of_shift


def _normal(u: Tensor, center: Tensor, r: Tensor, gain: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
    """x, and where ReLU lets it through."""
    value, slope = u.to(gain.dtype), gain * r
    return (value - _wide(center)) * _wide(r), _wide(slope) * value + _wide(shift - slope * center) > 0


def _spread(pooled: Tensor, u: Tensor, pool: int) -> Tensor:
    """The gradient of what is averaged; nothing takes the last pixels of an odd side."""
    if pool == 1:
        return pooled
    images, channels, rows, columns = pooled.shape
    whole = pooled[:, :, :, None, :, None].expand(-1, -1, -1, 2, -1, 2).reshape(images, channels, 2 * rows, 2 * columns) / 4
    return F.pad(whole, (0, u.shape[3] - 2 * columns, 0, u.shape[2] - 2 * rows))


def _wide(numbers: Tensor) -> Tensor:
    return numbers[:, :, None, None]


def _pixels(u: Tensor) -> int:
    return u.shape[2] * u.shape[3]


def _sum(values: Tensor) -> Tensor:
    """Over an image's pixels, (B, C)."""
    return values.sum((2, 3))


def _mean(sums: Tensor, u: Tensor, groups: int) -> Tensor:
    """Over the pixels of a group's channels, from each channel's sum (B, C)."""
    images, channels = sums.shape
    of_group = sums.view(images, groups, -1).sum(2, keepdim=True).expand(-1, -1, channels // groups)
    return of_group.reshape(images, channels) / (_pixels(u) * (channels // groups))
