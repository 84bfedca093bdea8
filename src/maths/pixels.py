"""Between pixels, real numbers in [0, 1], and what networks read: its space. Fitted on the training split alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from src.ground.errors import DataError

BLOCK = 1024  # images that are real numbers at the same time
WHITENED_MOST = 4096  # numbers of an image, D: 32x32 in colour, 64x64 in grey; two matrices of D x D and a minute


class Space(Protocol):
    """What networks read instead of pixels (N, C, H, W), or of the numbers of tuples (N, D).

    Distilled images may leave [0, 1] when they come back.
    """

    def normalise(self, pixels: Tensor) -> Tensor:
        """Network input of pixels."""

    def to_pixels(self, images: Tensor) -> Tensor:
        """Pixels of network input."""


@dataclass(frozen=True)
class Normalisation:
    """Per-channel mean and standard deviation, both (C,); of tuples those of each number (D,)."""

    mean: Tensor
    std: Tensor

    def normalise(self, pixels: Tensor) -> Tensor:
        return (pixels - self._channels(self.mean, pixels)) / self._channels(self.std, pixels)

    def to_pixels(self, images: Tensor) -> Tensor:
        return images * self._channels(self.std, images) + self._channels(self.mean, images)

    @staticmethod
    def _channels(values: Tensor, like: Tensor) -> Tensor:
        return values.to(like).view(1, -1, *(1,) * (like.dim() - 2))


@dataclass(frozen=True)
class Whitening:
    """ZCA: the mean image (D,), the symmetric matrix that decorrelates its numbers, and that matrix's inverse, both (D, D)."""

    mean: Tensor
    matrix: Tensor
    inverse: Tensor

    def normalise(self, pixels: Tensor) -> Tensor:
        flat = pixels.flatten(1) - self.mean.to(pixels)
        with _one_thread():
            return (flat @ self.matrix.to(pixels)).view_as(pixels)

    def to_pixels(self, images: Tensor) -> Tensor:
        with _one_thread():
            flat = images.flatten(1) @ self.inverse.to(images) + self.mean.to(images)
        return flat.view_as(images)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Several add up in another order, so that bytes would depend on how many cores there are."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def inputs(space: Space, images: Tensor, pixel_max: int) -> Tensor:
    """Network input (N, C, H, W) in float32 of integers, pixel = integer / pixel_max, block by block."""
    found = torch.empty(images.shape)
    for start in range(0, len(images), BLOCK):
        found[start : start + BLOCK] = space.normalise(images[start : start + BLOCK].float() / pixel_max)
    return found


def fit_normalisation(images: Tensor, pixel_max: int) -> Normalisation:
    """Of integers (N, C, H, W); a constant channel keeps std 1, so that it can be divided by."""
    count = images.numel() // images.shape[1]
    first, second = torch.zeros(images.shape[1], dtype=torch.int64), torch.zeros(images.shape[1], dtype=torch.int64)
    for block in _blocks(images):
        first, second = first + block.sum(dim=(0, 2, 3)), second + (block**2).sum(dim=(0, 2, 3))
    mean = first.double() / count
    std = (second.double() / count - mean**2).clamp(min=0).sqrt()
    return Normalisation((mean / pixel_max).float(), torch.where(std > 0, std / pixel_max, torch.ones_like(std)).float())


def fit_whitening(images: Tensor, pixel_max: int, eps: float) -> Whitening:
    """ZCA of integers (N, C, H, W): inverse root of the covariance (divided by N) with `eps` added to its eigenvalues.

    In double precision, of exact integer sums. Raises DataError where the matrices would be too large.
    """
    numbers = images[0].numel()  # D
    _check_size(images.shape, numbers)
    total, products = torch.zeros(numbers, dtype=torch.float64), torch.zeros(numbers, numbers, dtype=torch.float64)
    for block in _blocks(images):
        flat = block.flatten(1).double()
        total += flat.sum(dim=0)
        products.addmm_(flat.T, flat)
    mean = total / len(images)
    covariance = (products / len(images) - mean[:, None] * mean) / pixel_max**2
    with _one_thread():
        values, vectors = torch.linalg.eigh(covariance)
        roots = (values.clamp(min=0) + eps).sqrt()
        matrix, inverse = (((vectors * scale) @ vectors.T).float() for scale in (1 / roots, roots))
    return Whitening((mean / pixel_max).float(), matrix, inverse)


def _check_size(shape: torch.Size, numbers: int) -> None:
    if numbers > WHITENED_MOST:
        gigabytes = 2 * numbers**2 * 4 / 1e9
        raise DataError(
            f"zca on images of {shape[1]}x{shape[2]}x{shape[3]} needs two matrices of {numbers:,} x {numbers:,}, "
            f"{gigabytes:.1f} GB, and hours to fit: use whitening 'none', or a size of {WHITENED_MOST:,} numbers or less"
        )


def _blocks(images: Tensor) -> Iterator[Tensor]:
    return (block.long() for block in images.split(BLOCK))
