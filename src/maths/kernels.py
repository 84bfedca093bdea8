"""kernels.cpp, built once for a processor and a precision, and called on tensors: what stands between a ConvNet's convolutions.

torch starts half a dozen operations there, each of which reads and writes whole images; and where channels come last in memory,
which convolutions are fastest with, its own norms are slow. On a GPU the same functions are those of `fused`.
"""

from __future__ import annotations

import ctypes
import functools
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from src.ground import native, runtime
from src.maths import fused

TAPS = 32  # as kernels.cpp has it
MOST_INPUTS = TAPS // 9
Gradients = tuple[Tensor, Tensor, Tensor]  # of u (B, C, H, W), gain (C,) and shift (C,)
TYPES = {torch.float32: ("float", "float"), torch.bfloat16: ("float", "Bfloat16"), torch.float64: ("double", "double")}


class Shape(ctypes.Structure):
    """Shape of kernels.cpp."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("images", "height", "width", "channels", "groups", "pool", "threads")),
        ("eps", ctypes.c_double),
    ]


@dataclass(frozen=True)
class Between:
    """What stands between two convolutions: the norm's groups (0: no norm) and epsilon, then ReLU, then average pooling."""

    groups: int
    eps: float
    pool: int  # 2, or 1 for none


@dataclass(frozen=True)
class Norm:
    """What a norm found: u + bias is normalised to (u - center) r; (B, C) each, in the precision of the sums."""

    center: Tensor
    r: Tensor


def is_fused(images: Tensor) -> bool:
    """Whether they are where `fused` takes the place of kernels.cpp."""
    return images.is_cuda


@functools.cache
def problem() -> str:
    """Why there are no kernels here, in words; empty where there are."""
    try:
        _library(torch.float32)
    except (OSError, subprocess.CalledProcessError) as error:
        return native.said(error)
    return ""


@functools.cache
def _library(stored: torch.dtype) -> ctypes.CDLL:
    real, kept = TYPES[stored]
    return native.library(__file__, "kernels.cpp", (f"REAL={real}", f"STORED={kept}"))


def forward(between: Between, u: Tensor, bias: Tensor, gain: Tensor, shift: Tensor) -> tuple[Tensor, Norm]:
    """v (B, C, H / pool, W / pool) of a convolution's output u (B, C, H, W) without its bias (C,)."""
    if is_fused(u):
        v, *numbers = _fused(fused.forward, between)(u, bias, gain, shift)
        return v, Norm(*numbers)
    v, norm = _pooled(between, u), Norm(*(_numbers(u, gain) for _ in range(2)))
    _call("forward", between, u, bias, gain, shift, v, norm.center, norm.r)
    return v, norm


def backward(between: Between, u: Tensor, norm: Norm, gain: Tensor, shift: Tensor, q: Tensor) -> Gradients:
    """From the gradient q of v those of u, gain (C,) and shift (C,)."""
    if is_fused(u):
        return cast(Gradients, _fused(fused.backward, between)(u, norm.center, norm.r, gain, shift, _last(q)))
    q_u, of_gain, of_shift = torch.empty_like(u), torch.empty_like(gain), torch.empty_like(gain)
    partial = gain.new_empty(2, *u.shape[:2])
    _call("backward", between, u, norm.center, norm.r, gain, shift, _last(q), q_u, of_gain, of_shift, partial)
    return q_u, of_gain, of_shift


def forward_along(
    between: Between,
    u: Tensor,
    norm: Norm,
    gain: Tensor,
    shift: Tensor,
    u_d: Tensor,
    more: Tensor | None,
    bias_d: Tensor,
    gain_d: Tensor,
    shift_d: Tensor,
) -> tuple[Tensor, Norm]:
    """The derivative of v along that of its arguments, where u's is u_d + more: their sum is left in u_d.

    What the norm found of it: (u_d - center) r is its derivative but for the part along x, whose length is r here.
    """
    if is_fused(u):
        u_d = u_d if more is None else u_d.add_(more)
        found = _fused(fused.forward_along, between)
        v_d, *numbers = found(u, norm.center, norm.r, gain, shift, u_d, bias_d, gain_d, shift_d)
        return v_d, Norm(*numbers)
    v_d, norm_d = _pooled(between, u), Norm(*(_numbers(u, gain) for _ in range(2)))
    given = (u, norm.center, norm.r, gain, shift, u_d, None if more is None else _last(more), bias_d, gain_d, shift_d)
    _call("forward_along", between, *given, v_d, norm_d.center, norm_d.r)
    return v_d, norm_d


def backward_along(
    between: Between,
    u: Tensor,
    u_d: Tensor,
    norm: Norm,
    norm_d: Norm,
    gain: Tensor,
    shift: Tensor,
    gain_d: Tensor,
    p: Tensor,
    more: Tensor | None,
    q: Tensor,
) -> Gradients:
    """From the gradients p + more of v and q of its derivative those of u, gain (C,) and shift (C,)."""
    if is_fused(u):
        numbers = (norm.center, norm.r, norm_d.center, norm_d.r)
        whole = _last(p if more is None else p + more)
        return cast(Gradients, _fused(fused.backward_along, between)(u, u_d, *numbers, gain, shift, gain_d, whole, _last(q)))
    p_u, of_gain, of_shift = torch.empty_like(u), torch.empty_like(gain), torch.empty_like(gain)
    partial = gain.new_empty(2, *u.shape[:2])
    given = (u, u_d, norm.center, norm.r, norm_d.center, norm_d.r, gain, shift, gain_d, _last(p))
    _call("backward_along", between, *given, None if more is None else _last(more), _last(q), p_u, of_gain, of_shift, partial)
    return p_u, of_gain, of_shift


def to_images(p: Tensor, weight: Tensor, q: Tensor | None = None, weight_d: Tensor | None = None) -> Tensor:
    """The gradient of the first convolution's images (B, I, H, W): from p (B, C, H, W) of its output through weight
    (C, I, 3, 3), and from q through weight_d. There are at most MOST_INPUTS channels I.
    """
    images, channels, height, width = p.shape
    inputs = weight.shape[1]
    found = weight.new_empty(images, inputs, height, width)
    taps = [None if one is None else F.pad(one.reshape(channels, -1), (0, TAPS - 9 * inputs)) for one in (weight, weight_d)]
    shape = Shape(images, height, width, channels, 0, 1, torch.get_num_threads(), 0.0)
    places = [None if one is None else ctypes.c_void_p(one.data_ptr()) for one in (p, taps[0], q, taps[1])]
    _library(p.dtype).to_images(ctypes.byref(shape), *places, ctypes.c_int64(inputs), ctypes.c_void_p(found.data_ptr()))
    return found


def _fused(function: Callable[..., Any], between: Between) -> Callable[..., Any]:
    """The function of `fused`. Where the same bytes are to come again, no clock chooses how a kernel splits its sums."""
    runtime.tell_compiler()  # which meets new shapes long after it was asked
    return fused.made(function, between.groups, between.eps, between.pool)


def _call(name: str, between: Between, u: Tensor, *given: Tensor | None) -> None:
    images, channels, height, width = u.shape
    shape = Shape(images, height, width, channels, between.groups, between.pool, torch.get_num_threads(), between.eps)
    places = (None if one is None else ctypes.c_void_p(one.data_ptr()) for one in given)
    getattr(_library(u.dtype), name)(ctypes.byref(shape), ctypes.c_void_p(u.data_ptr()), *places)


def _last(images: Tensor) -> Tensor:
    """With channels last, as the kernels read them."""
    return images.contiguous(memory_format=torch.channels_last)


def _pooled(between: Between, u: Tensor) -> Tensor:
    images, channels, height, width = u.shape
    size = (images, channels, height // between.pool, width // between.pool)
    return torch.empty(size, dtype=u.dtype, memory_format=torch.channels_last)


def _numbers(u: Tensor, gain: Tensor) -> Tensor:
    return gain.new_empty(u.shape[:2])
