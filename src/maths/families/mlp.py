"""MLP, as its settings describe it."""

from __future__ import annotations

from torch import nn

from src.settings.networks import MLP


def layers(spec: MLP, channels: int, size: int, classes: int) -> list[nn.Module]:
    found: list[nn.Module] = [nn.Flatten()]
    inputs = channels * size * size
    for _ in range(spec.depth):
        found += [nn.Linear(inputs, spec.width), nn.ReLU()]
        inputs = spec.width
    return [*found, nn.Linear(inputs, classes)]
