"""What a picture shows of pixels that leave [0, 1], as those of distilled images do."""

from __future__ import annotations

from torch import Tensor

EDGE = 0.05  # share of an image's numbers that may be cut off at black, and at white


def shown(pixels: Tensor) -> Tensor:
    """Images (..., C, H, W) with all numbers in [0, 1], black and white.

    An image whose numbers leave [0, 1] has its contrast lowered, by itself and for all of its channels alike, until no more
    than EDGE of them is cut off at either end. One that stays within is shown as it is.
    """
    if pixels.min() >= 0 and pixels.max() <= 1:
        return pixels
    flat = pixels.flatten(-3)
    cut = int(EDGE * flat.shape[-1])
    black = flat.kthvalue(cut + 1, keepdim=True).values.clamp(max=0)[..., None, None]
    white = flat.kthvalue(flat.shape[-1] - cut, keepdim=True).values.clamp(min=1)[..., None, None]
    return ((pixels - black) / (white - black)).clamp(0, 1)
