"""TextNet: convolutions along the characters of a text, the largest value of each channel, one linear layer."""

from __future__ import annotations

from torch import nn

from src.settings.networks import TextNet


def layers(spec: TextNet, channels: int, size: int, classes: int) -> list[nn.Module]:
    """`channels` are the numbers of a character, `size` the characters of a text."""
    found: list[nn.Module] = []
    for _ in range(spec.depth):
        found += [nn.Conv1d(channels, spec.width, spec.kernel, padding=spec.kernel // 2), nn.ReLU()]
        channels = spec.width
    return [*found, nn.AdaptiveMaxPool1d(1), nn.Flatten(), nn.Linear(channels, classes)]
