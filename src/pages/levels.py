"""What a picture shows of pixels that leave [0, 1], as those of distilled images do."""

from __future__ import annotations

from torch import Tensor

EDGE = 0.05  # share of an image's numbers that may be cut off at black, and at white


def shown(pixels: Tensor) -> Tensor:
    """Images (..., C, H, W) with all numbers in [0, 1], black and white.

    An image whose numbers leave [0, 1] has its contrast lowered, by itself and for all of its channels alike, until no more
    than EDGE of them is cut off at either end. One that stays within is shown as it is.
    """
    flat = pixels.flatten(-3)
    ordered = flat.sort(dim=-1).values
    cut = int(EDGE * flat.shape[-1])
    black, white = ordered[..., cut].clamp(max=0), ordered[..., -1 - cut].clamp(min=1)
    black, white = (level[..., None, None, None] for level in (black, white))
    return ((pixels - black) / (white - black)).clamp(0, 1)
