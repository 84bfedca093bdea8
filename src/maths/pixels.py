"""Between pixels, real numbers in [0, 1], and what networks read."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Normalisation:
    """Per-channel mean and standard deviation of the training split's pixels, both (C,)."""

    mean: Tensor
    std: Tensor

    def normalise(self, pixels: Tensor) -> Tensor:
        """Network input of pixels (N, C, H, W) in [0, 1]."""
        return (pixels - self._channels(self.mean, pixels)) / self._channels(self.std, pixels)

    def to_pixels(self, images: Tensor) -> Tensor:
        """Pixels of network inputs (N, C, H, W); distilled images may leave [0, 1]."""
        return images * self._channels(self.std, images) + self._channels(self.mean, images)

    @staticmethod
    def _channels(values: Tensor, like: Tensor) -> Tensor:
        return values.to(like).view(1, -1, 1, 1)


def fit(pixels: Tensor) -> Normalisation:
    """The normalisation of pixels (N, C, H, W); a constant channel keeps std 1, so that it can be divided by."""
    wide = pixels.double()
    std = wide.std(dim=(0, 2, 3), unbiased=False)
    return Normalisation(wide.mean(dim=(0, 2, 3)).float(), torch.where(std > 0, std, torch.ones_like(std)).float())
