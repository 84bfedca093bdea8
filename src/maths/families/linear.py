"""One linear layer."""

from __future__ import annotations

from torch import nn

from src.settings.networks import Linear


def layers(spec: Linear, channels: int, size: int, classes: int) -> list[nn.Module]:
    return [nn.Flatten(), nn.Linear(channels * size, classes)]
