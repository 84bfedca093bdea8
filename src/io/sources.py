"""Where real images come from."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor


@dataclass(frozen=True)
class RealImages:
    """All images of a source: integers (N, C, H, W), pixel = integer / pixel_max, labels (N,), names of the K classes."""

    images: Tensor  # uint8
    labels: Tensor  # int64
    classes: tuple[str, ...]
    pixel_max: int

    def sha256(self) -> str:
        return hashlib.sha256(self.images.numpy().tobytes() + self.labels.numpy().tobytes()).hexdigest()


def read_digits() -> RealImages:
    """scikit-learn's digits: 1,797 grey images of 8x8 with 17 levels, installed with the package."""
    found = load_digits()
    images = torch.from_numpy(found.images.astype(np.uint8)).unsqueeze(1)
    labels = torch.from_numpy(found.target.astype(np.int64))
    return RealImages(images, labels, tuple(str(name) for name in found.target_names), pixel_max=16)


SOURCES = {"digits": read_digits}
