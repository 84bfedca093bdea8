"""VGG11, as its settings describe it."""

from __future__ import annotations

from torch import nn

from src.maths.families.shared import averaged, check_size, halvings, norm, padded
from src.settings.networks import VGG11

CHANNELS = (1, 2, 4, 4, 8, 8, 8, 8)  # of each convolution, in widths
POOLED = (0, 1, 3, 5, 7)


def layers(spec: VGG11, channels: int, size: int, classes: int) -> list[nn.Module]:
    check_size("VGG11", size)
    side = padded(size)
    pooled = POOLED[-halvings(side, 1, len(POOLED)) :]
    found: list[nn.Module] = []
    for place, factor in enumerate(CHANNELS):
        width, padding = factor * spec.width, 1 + ((padded(size) - size) // 2 if place == 0 else 0)
        found += [nn.Conv2d(channels, width, kernel_size=3, padding=padding), norm(spec.norm, width), nn.ReLU()]
        if place in pooled:
            found.append(nn.MaxPool2d(2))
            side //= 2
        channels = width
    return [*found, *averaged(side, 1), nn.Flatten(), nn.Linear(channels, classes)]
