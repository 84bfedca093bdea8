"""LeNet, as its settings describe it."""

from __future__ import annotations

from torch import nn

from src.maths.families.shared import FIELD, averaged
from src.settings.networks import LeNet


def layers(spec: LeNet, channels: int, size: int, classes: int) -> list[nn.Module]:
    padding = max(0, -(-(FIELD - size) // 2))
    side = ((size + 2 * padding - 4) // 2 - 4) // 2  # each 5x5 convolution takes four pixels off
    return [
        *(nn.Conv2d(channels, 6, kernel_size=5, padding=padding), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(6, 16, kernel_size=5), nn.ReLU(), nn.MaxPool2d(2)),
        *(*averaged(side, 5), nn.Flatten()),
        *(nn.Linear(16 * 5 * 5, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, classes)),
    ]
