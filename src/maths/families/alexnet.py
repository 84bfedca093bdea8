"""AlexNet, as its settings describe it."""

from __future__ import annotations

from torch import nn

from src.maths.families.shared import averaged, check_size, halvings, padded
from src.settings.networks import AlexNet

BLOCKS = ((128, 5), (192, 5), (256, 3), (192, 3), (192, 3))  # channels and kernel of each convolution
POOLED = (0, 1, 4)  # convolutions that a pooling follows


def layers(spec: AlexNet, channels: int, size: int, classes: int) -> list[nn.Module]:
    check_size("AlexNet", size)
    side = padded(size)
    pooled = POOLED[-halvings(side, 4, len(POOLED)) :]
    found: list[nn.Module] = []
    for place, (width, kernel) in enumerate(BLOCKS):
        padding = kernel // 2 + ((padded(size) - size) // 2 if place == 0 else 0)
        found += [nn.Conv2d(channels, width, kernel, padding=padding), nn.ReLU()]
        if place in pooled:
            found.append(nn.MaxPool2d(2))
            side //= 2
        channels = width
    return [*found, *averaged(side, 4), nn.Flatten(), nn.Linear(channels * 4 * 4, classes)]
