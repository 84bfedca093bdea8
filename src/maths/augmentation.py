"""Differentiable siamese augmentation (DSA, arXiv 2102.08259): one kind a batch, its parameters drawn for each image.

Draw and application are apart: a `Draw` holds the random numbers of one batch, and `apply` is a pure function of draw and
images, so that an inner step can be replayed exactly. Strengths are the field's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

DRAWS = 3  # uniform numbers an image needs at most (color)
SATURATION, CONTRAST, BRIGHTNESS = 2.0, 0.5, 1.0
CROP_PADDING = 0.125  # of the side
CUTOUT = 0.5  # of the side
FLIP = 0.5  # probability
SCALE = 1.2
ROTATE = 15.0  # degrees


@dataclass(frozen=True)
class Draw:
    """The kind of one batch (None changes nothing) and uniform numbers in [0, 1), (B, DRAWS)."""

    kind: str | None
    uniforms: Tensor

    def to(self, device: torch.device, dtype: torch.dtype) -> Draw:
        """On the device once all that was asked of it before is done; the host does not wait for that."""
        return Draw(self.kind, self.uniforms.to(device, dtype, non_blocking=True))


def draw(kinds: Sequence[str], batch: int, generator: torch.Generator) -> Draw:
    """Draw a kind with equal chances and the numbers for `batch` images."""
    if not kinds:
        return Draw(None, torch.empty(batch, 0))
    kind = kinds[int(torch.randint(len(kinds), (), generator=generator))]
    return Draw(kind, torch.rand(batch, DRAWS, generator=generator))


def apply(draw: Draw, images: Tensor) -> Tensor:
    """Augment images (B, C, H, W) by the draw; differentiable in the images."""
    return images if draw.kind is None else KINDS[draw.kind](images, draw.uniforms)


def _per_image(values: Tensor) -> Tensor:
    return values.view(-1, 1, 1, 1)


def _color(images: Tensor, u: Tensor) -> Tensor:
    """Brightness, then saturation about the grey image, then contrast about the image's mean."""
    images = images + _per_image(u[:, 0] - 0.5) * BRIGHTNESS
    grey = images.mean(dim=1, keepdim=True)
    images = (images - grey) * _per_image(u[:, 1]) * SATURATION + grey
    mean = images.mean(dim=(1, 2, 3), keepdim=True)
    return (images - mean) * _per_image(u[:, 2] + CONTRAST) + mean


def _crop(images: Tensor, u: Tensor) -> Tensor:
    """Shift by up to an eighth of the side in each direction, zeros coming in."""
    pad = int(images.shape[-1] * CROP_PADDING + 0.5)
    rows, columns = ((u[:, i] * (2 * pad + 1)).long() - pad for i in (0, 1))  # (B,)
    return _shifted(images, rows, columns)


def _shifted(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Image b moved so that pixel (r, c) shows what was at (r + rows[b], c + columns[b])."""
    batch, channels, height, width = images.shape
    r = torch.arange(height, device=images.device) + rows[:, None]  # (B, H)
    c = torch.arange(width, device=images.device) + columns[:, None]  # (B, W)
    inside = ((r >= 0) & (r < height))[:, :, None] & ((c >= 0) & (c < width))[:, None, :]  # (B, H, W)
    index = (r.clamp(0, height - 1) * width)[:, :, None] + c.clamp(0, width - 1)[:, None, :]
    index = index.view(batch, 1, -1).expand(-1, channels, -1)
    moved = images.flatten(2).gather(2, index).view_as(images)
    return moved * inside.unsqueeze(1)


def _cutout(images: Tensor, u: Tensor) -> Tensor:
    """Zero a square of half the side about a random centre, cut off at the border."""
    height, width = images.shape[-2:]
    masks = []
    for side, centre in ((height, u[:, 0]), (width, u[:, 1])):
        size = int(side * CUTOUT + 0.5)
        start = (centre * (side + 1 - size % 2)).long() - size // 2  # (B,)
        place = torch.arange(side, device=images.device)
        masks.append((place >= start[:, None]) & (place < start[:, None] + size))
    hole = masks[0][:, :, None] & masks[1][:, None, :]  # (B, H, W)
    return images * ~hole.unsqueeze(1)


def _flip(images: Tensor, u: Tensor) -> Tensor:
    return torch.where(_per_image(u[:, 0]) < FLIP, images.flip(-1), images)


def _scale(images: Tensor, u: Tensor) -> Tensor:
    """Stretch each axis by its own factor between 1/1.2 and 1.2."""
    factors = u[:, :2] * (SCALE - 1 / SCALE) + 1 / SCALE
    zero = torch.zeros_like(factors[:, 0])
    rows = (torch.stack((factors[:, 0], zero, zero), 1), torch.stack((zero, factors[:, 1], zero), 1))
    return _affine(images, torch.stack(rows, 1))


def _rotate(images: Tensor, u: Tensor) -> Tensor:
    angle = (u[:, 0] - 0.5) * 2 * ROTATE * math.pi / 180
    cos, sin, zero = angle.cos(), angle.sin(), torch.zeros_like(angle)
    rows = (torch.stack((cos, -sin, zero), 1), torch.stack((sin, cos, zero), 1))
    return _affine(images, torch.stack(rows, 1))


def _affine(images: Tensor, matrices: Tensor) -> Tensor:
    """Resample bilinearly by matrices (B, 2, 3), zeros outside."""
    grid = F.affine_grid(matrices, list(images.shape), align_corners=True)
    return F.grid_sample(images, grid, align_corners=True)


KINDS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "color": _color,
    "crop": _crop,
    "cutout": _cutout,
    "flip": _flip,
    "scale": _scale,
    "rotate": _rotate,
}
