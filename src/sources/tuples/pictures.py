"""Picture files of tuples as tensors."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from src.ground.errors import DataError
from src.sources import images
from src.sources.images import BrokenImageError, Shape

TRIAL = Shape(3, 8)  # of pictures that are decoded only to see whether they can be


def flaw(content: bytes, name: str) -> str:
    """Why a picture can't be read; nothing where it can."""
    try:
        with images.quiet():
            images.decode(content, TRIAL, name)
    except BrokenImageError as error:
        return str(error)
    return ""


def decoded(contents: Sequence[bytes], names: Sequence[str], shape: Shape) -> Tensor:
    """Integers 0 to 255, (n, C, H, W). Raises DataError."""
    found = []
    for content, name in zip(contents, names, strict=True):
        try:
            with images.quiet():
                found.append(images.decode(content, shape, name))
        except BrokenImageError as error:
            text = f"{name} can't be read as an image ({error})"
            raise DataError(f"{text}: repair it, or leave its rows out with skip_broken: true") from None
    return torch.from_numpy(np.stack(found)).permute(0, 3, 1, 2).contiguous()
