"""ConvNet: blocks of convolution, norm, activation and pooling, then one linear layer."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from src.ground.errors import UserError
from src.maths.families.shared import norm, padded
from src.settings.networks import ConvNet

ACTIVATIONS: Mapping[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "leaky_relu": lambda: nn.LeakyReLU(0.01),
    "sigmoid": nn.Sigmoid,
    "gelu": nn.GELU,
}
POOLINGS: Mapping[str, Callable[[int], nn.Module]] = {"avg": nn.AvgPool2d, "max": nn.MaxPool2d}


class FirstConvolution(nn.Conv2d):
    """A convolution of images: compiled on a CPU in a form that has fast kernels, of the same value but for rounding.

    With one channel, memory with channels last looks contiguous, so that the layers behind copy theirs: a second one, of zeros,
    ends that. The weights' gradient in bfloat16 has no fast kernel for padding wider than the kernel's reach: the rest of it
    becomes pixels. Eager code gains nothing by either.
    """

    def forward(self, images: Tensor) -> Tensor:
        reach = self.kernel_size[0] // 2
        missing, beyond = max(0, 2 - self.in_channels), int(self.padding[0]) - reach
        if not torch.compiler.is_compiling() or images.device.type != "cpu" or not (missing or beyond):
            return super().forward(images)
        pixels = F.pad(images, (beyond, beyond, beyond, beyond, 0, missing))
        return F.conv2d(pixels, F.pad(self.weight, (0, 0, 0, 0, 0, missing)), self.bias, padding=reach)


def layers(spec: ConvNet, channels: int, size: int, classes: int) -> list[nn.Module]:
    side = padded(size)
    _check_depth(spec, side)
    found: list[nn.Module] = []
    for block in range(spec.depth):
        padding = 1 + (padded(size) - size) // 2 if block == 0 else 1
        convolution = FirstConvolution if block == 0 else nn.Conv2d
        found.append(convolution(channels, spec.width, kernel_size=3, padding=padding))
        if spec.norm != "none":
            found.append(norm(spec.norm, spec.width))
        found.append(ACTIVATIONS[spec.activation]())
        if spec.pooling != "none":
            found.append(POOLINGS[spec.pooling](2))
            side //= 2
        channels = spec.width
    return [*found, nn.Flatten(), nn.Linear(spec.width * side * side, classes)]


def _check_depth(spec: ConvNet, side: int) -> None:
    if spec.pooling != "none" and side < 2**spec.depth:
        raise UserError(
            f"network depth {spec.depth} halves a side of {side} pixels below 1: "
            f"use depth {side.bit_length() - 1} or less, or pooling 'none'"
        )
