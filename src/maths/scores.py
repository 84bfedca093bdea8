"""Accuracies, as fractions."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

CHUNK = 1024  # images of one forward pass, of 32x32 pixels or less
PIXELS = 32 * 32


def predictions(logits: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """Predicted classes (N,) of images (N, C, H, W)."""
    with torch.no_grad():
        return torch.cat([logits(chunk).argmax(dim=-1) for chunk in images.split(chunk_of(images.shape[-1]))])


def chunk_of(size: int) -> int:
    """Images of one forward pass, of this side in pixels: larger ones are fewer, so that they take no more memory."""
    return max(1, CHUNK * PIXELS // max(PIXELS, size**2))


def accuracy(predicted: Tensor, labels: Tensor) -> float:
    """Fraction of predicted classes (N,) that equal the labels (N,)."""
    return (predicted == labels).double().mean().item()


def mean_and_std(values: Sequence[float]) -> tuple[float, float]:
    """Mean and sample standard deviation (divided by n - 1)."""
    tensor = torch.tensor(values, dtype=torch.float64)
    return tensor.mean().item(), tensor.std().item()
