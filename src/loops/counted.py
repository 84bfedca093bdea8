"""What is counted of the GPU memory that training takes: its tensors, on a pretended device, in a few small steps.

Code is counted eager: compiled, it keeps less between its kernels. What kernels need for themselves, torch's own libraries and
the gaps that its allocator leaves come on top, so that `SHARE` of a GPU's memory is for what is counted.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from src.maths import scores
from src.maths.networks import ImageShape
from src.process.arrays import Array
from src.settings.networks import Network

SHARE = 0.85
FLOAT = 4  # bytes


@dataclass(frozen=True)
class Task:
    """What is trained: a network on images of this shape, in this precision."""

    spec: Network
    shape: ImageShape
    bfloat16: bool

    def arrays(self, count: int) -> tuple[Array, Array]:
        """So many images and labels; nothing depends on what they show."""
        shape = self.shape
        images = np.zeros((count, shape.channels, shape.size, shape.size), dtype=np.float32)
        return images, np.arange(count) % shape.classes

    def image_bytes(self, count: int) -> int:
        return count * self.shape.channels * self.shape.size**2 * FLOAT

    def scored(self, count: int) -> int:
        """Of so many images those that one forward pass takes."""
        return min(count, scores.chunk_of(self.shape.size))
