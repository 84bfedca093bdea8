"""ResNet18, as its settings describe it."""

from __future__ import annotations

import functools

from torch import nn

from src.maths.families.shared import check_size, halvings, norm
from src.settings.networks import ResNet18

LARGE = 128  # side from which ResNet18 has ImageNet's stem


def layers(spec: ResNet18, channels: int, size: int, classes: int) -> list[nn.Module]:
    check_size("ResNet18", size)
    found, side = _stem(spec, channels, size)
    inside, halved = spec.width, halvings(side - 1, 3, 3)  # strides round up: 28 -> 14 -> 7 -> 4
    for stage, factor in enumerate((1, 2, 4, 8)):
        outside, stride = factor * spec.width, 2 if stage > 3 - halved else 1
        found += [_residual(spec, inside, outside, stride), _residual(spec, outside, outside, 1)]
        inside = outside
    return [*found, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inside, classes)]


def _stem(spec: ResNet18, channels: int, size: int) -> tuple[list[nn.Module], int]:
    """The first layers, and the side that they leave."""
    rest = [norm(spec.norm, spec.width), nn.ReLU()]
    if size < LARGE:
        return [nn.Conv2d(channels, spec.width, kernel_size=3, padding=1, bias=False), *rest], size
    first = nn.Conv2d(channels, spec.width, kernel_size=7, stride=2, padding=3, bias=False)
    return [first, *rest, nn.MaxPool2d(kernel_size=3, stride=2, padding=1)], -(-size // 4)


def _residual(spec: ResNet18, inside: int, outside: int, stride: int) -> nn.Module:
    """torchvision's basic block, with a 1x1 convolution beside it where its output has another shape than its input."""
    from torchvision.models.resnet import BasicBlock  # a second to import, which only this family takes

    norms = functools.partial(norm, spec.norm)
    beside = None
    if (inside, stride) != (outside, 1):
        beside = nn.Sequential(nn.Conv2d(inside, outside, kernel_size=1, stride=stride, bias=False), norms(outside))
    block: nn.Module = BasicBlock(inside, outside, stride, beside, norm_layer=norms)
    return block
