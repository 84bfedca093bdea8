"""Reader of a folder of .pt files, for train_on_it.py."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor


def read(folder: Path, normalise: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    """What students read, (S, C, H, W), as it was saved, and labels: classes (S,) or probabilities (S, K)."""
    images, labels = (torch.load(folder / f"{name}_best.pt", weights_only=True) for name in ("images", "labels"))
    return images, labels.softmax(1) if labels.is_floating_point() else labels
