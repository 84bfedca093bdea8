"""Encoders of tuples: one for each modality, all into one space of directions."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class TupleEncoders(nn.Module):
    """Rows of all modalities' numbers (B, D) -> directions (B, M, E), vectors of length 1."""

    def __init__(self, encoders: Sequence[nn.Module], shapes: Sequence[tuple[int, ...]]):
        super().__init__()
        self.encoders = nn.ModuleList(encoders)
        self._shapes = list(shapes)

    def forward(self, tuples: Tensor, modality: int | None = None) -> Tensor:
        """With a `modality` the input are its own items (n, D_m) alone, and the output their directions (n, E)."""
        if modality is not None:
            return self._encoded(modality, tuples)
        items = tuples.split([prod(shape) for shape in self._shapes], dim=1)
        return torch.stack([self._encoded(place, own) for place, own in enumerate(items)], dim=1)

    def _encoded(self, modality: int, items: Tensor) -> Tensor:
        return F.normalize(self.encoders[modality](items.unflatten(1, self._shapes[modality])), dim=1)
