"""Picture files of tuples as tensors."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from src.ground.errors import DataError
from src.sources import images
from src.sources.images import BrokenImageError, Shape


def decoded(contents: Sequence[bytes], names: Sequence[str], shape: Shape) -> Tensor:
    """Integers 0 to 255, (n, C, H, W). Raises DataError."""
    found = []
    for content, name in zip(contents, names, strict=True):
        try:
            found.append(images.decode(content, shape, name))
        except BrokenImageError as error:
            raise DataError(
                f"{name} can't be read as an image ({error}): repair it, or take its row out of the table"
            ) from None
    return torch.from_numpy(np.stack(found)).permute(0, 3, 1, 2).contiguous()
