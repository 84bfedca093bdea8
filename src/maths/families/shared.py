"""What families share: norms, and how sides are halved, padded and averaged."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import nn

from src.ground.errors import UserError

GROUPS: Mapping[str, Callable[[int], int]] = {
    "instance": lambda width: width,
    "layer": lambda width: 1,
    "group": lambda width: 4,
}

FIELD = 32  # side in pixels that the field's definitions are for
SMALLEST = 8  # side in pixels


def norm(norm: str, width: int) -> nn.Module:
    if norm == "none":
        return nn.Identity()
    if norm == "batch":
        return nn.BatchNorm2d(width)
    if norm == "group" and width % 4:
        raise UserError(f"norm 'group' makes 4 groups, but width {width} is not a multiple of 4: choose one that is")
    return nn.GroupNorm(GROUPS[norm](width), width)


def halvings(side: int, least: int, most: int) -> int:
    """How often a side can be halved, rounding down, before it falls below `least`; `most` times at most."""
    return min(most, (side // least).bit_length() - 1)


def averaged(side: int, most: int) -> list[nn.Module]:
    """What brings a larger side down to `most`: nothing at the size that the field's definition is for."""
    return [nn.AdaptiveAvgPool2d(most)] if side > most else []


def padded(size: int) -> int:
    """28x28 images are padded to 32x32 in the first convolution, as the field does."""
    return FIELD if size == 28 else size


def check_size(family: str, size: int) -> None:
    if size < SMALLEST:
        raise UserError(
            f"images of {size}x{size} pixels are too small for {family}, which takes {SMALLEST}x{SMALLEST} and more: "
            "set the data set's size, or use a ConvNet or an MLP"
        )
