"""Images as somebody saved them -> pixels (S, C, H, W) in float32: their order of axes, and the space that they are in.

What the user says about the space is compared with the numbers: a mistake there gives a set that trains students to nothing,
without any other sign. Distilled pixels may leave [0, 1], so that only what no such set does is refused; `sure` goes before.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from src.ground.errors import ArtifactError, UserError
from src.maths.networks import ImageShape
from src.maths.pixels import Normalisation, Space, Whitening

SpaceName = Literal["pixels", "normalised", "whitened"]

BYTE = 255  # the largest integer of a pixel
LOW, HIGH = -0.5, 3.0  # what few numbers of distilled pixels lie outside of
SHARE = 0.05  # of all numbers: more than a few
MEANS = (-0.25, 1.25)  # that the mean of pixels lies between, for sure
SURE = "or import it with `sure`"
NORMALISED = "looks normalised"


def arranged(images: Tensor, shape: ImageShape, title: str) -> tuple[Tensor, tuple[str, ...]]:
    """(S, C, H, W) of the channels and size given, and what was done for it. Raises ArtifactError on any other shape."""
    one, last = (shape.channels, shape.size, shape.size), (shape.size, shape.size, shape.channels)
    found = tuple(images.shape)
    if not images.numel() or images.dtype == torch.bool:
        raise ArtifactError(
            f"{title} holds images of shape {found} and {images.dtype}, which are none: give the file of a synthetic set"
        )
    if found[1:] == one and images.ndim == 4:
        return images, ()
    if found[1:] == last:
        return images.permute(0, 3, 1, 2).contiguous(), (f"{title}: images of shape {found} are taken as (S, H, W, C)",)
    if shape.channels == 1 and found[1:] == one[1:]:
        return images.unsqueeze(1), (f"{title}: images of shape {found} are taken as grey",)
    wanted = f"(S, {', '.join(map(str, one))})"
    raise ArtifactError(f"{title} holds images of shape {found}, but the data set's are {wanted}: {_remedy(found, one)}")


def to_pixels(images: Tensor, name: SpaceName, space: Space | None, sure: bool, title: str) -> tuple[Tensor, tuple[str, ...]]:
    """Pixels (S, C, H, W) in float32 of images in the space of this name; `space` is the data set's, where it is not pixels.

    Raises ArtifactError where numbers are not finite, or look as in another space and the user is not `sure`.
    """
    if images.is_floating_point():
        images = images.float()
    if not images.isfinite().all():
        raise ArtifactError(f"{title} holds images with numbers that are not finite: use a set from before it diverged")
    found, notes = _unit(images, name, title)
    if name == "pixels":
        if not sure:
            _check_pixels(found, title)
        return found, notes
    if not sure and float(found.min()) >= 0 and float(found.max()) <= 1:
        mean = f"looks like pixels: all its numbers lie in [0, 1], with mean {float(found.mean()):.2f}"
        raise ArtifactError(f"{title} {mean}, though {name} images have mean 0: say that they are pixels, {SURE}")
    pixels = _space(space, name).to_pixels(found)
    _check_result(pixels, name, sure, title)
    return pixels, notes


def _unit(images: Tensor, name: SpaceName, title: str) -> tuple[Tensor, tuple[str, ...]]:
    """In float32; integers 0 to 255, also as real numbers, as pixels in [0, 1]."""
    whole = not images.is_floating_point() or bool((images == images.round()).all())
    lowest, highest = float(images.min()), float(images.max())
    if not whole or (images.is_floating_point() and (highest <= 1 or lowest < 0 or highest > BYTE)):
        return images.float(), ()
    if name != "pixels":
        raise ArtifactError(
            f"{title} looks like pixels: it holds integers, and {name} images hold none: say that they are pixels"
        )
    if lowest < 0 or highest > BYTE:
        bounds = f"integers of {lowest:.0f} to {highest:.0f}"
        raise ArtifactError(
            f"{title} holds {bounds}, but those of pixels are 0 to {BYTE}: save real numbers, in [0, 1] for pixels"
        )
    return images.float() / BYTE, (f"{title}: integers are pixels of 0 to {BYTE}",)


def _check_pixels(images: Tensor, title: str) -> None:
    lowest, highest = float(images.min()), float(images.max())
    bounds = f"its numbers are {lowest:.3g} to {highest:.3g}"
    share = float(((images < LOW) | (images.abs() > HIGH)).float().mean())
    if lowest >= 0 and share > SHARE:
        raise ArtifactError(f"{title} looks like pixels of 0 to {BYTE}: {bounds}, not of 0 to 1: divide by {BYTE}, {SURE}")
    if share > SHARE:
        words = f"{NORMALISED}: {bounds}, and {share:.0%} of them lie below {LOW} or beyond {HIGH:g}, as pixels do not"
        raise ArtifactError(f"{title} {words}: say that it is normalised or whitened, {SURE}")
    _check_mean(images, title, "looks like no pixels", f"say that it is normalised or whitened, {SURE}")


def _check_result(pixels: Tensor, name: SpaceName, sure: bool, title: str) -> None:
    if not pixels.isfinite().all():
        raise ArtifactError(f"{title} holds {name} images whose pixels are not finite: check the data set's mean and std")
    if not sure:
        remedy = f"check the data set, its mean and std, and whether the images are whitened, {SURE}"
        _check_mean(pixels, title, f"looks otherwise than {name} as this data set is", remedy)


def _check_mean(pixels: Tensor, title: str, words: str, remedy: str) -> None:
    mean = float(pixels.mean())
    if not MEANS[0] <= mean <= MEANS[1]:
        raise ArtifactError(f"{title} {words}: its pixels have mean {mean:.3g}, where those of images lie in [0, 1]: {remedy}")


def _space(space: Space | None, name: SpaceName) -> Space:
    wanted = Whitening if name == "whitened" else Normalisation
    if not isinstance(space, wanted):
        has = "is not known" if space is None else f"has the other one, {type(space).__name__.lower()}"
        needs = (
            "a data set with whitening 'zca'" if name == "whitened" else "the mean and std that the images were normalised by"
        )
        raise UserError(f"images said to be {name} are undone by the data set's space, which {has}: give {needs}")
    return space


def _remedy(found: tuple[int, ...], one: tuple[int, int, int]) -> str:
    """What to do about images of this shape, where those of the data set are `one`, (C, H, W)."""
    channels, size, _ = one
    if len(found) == 4 and found[1:3] == (size, size):
        return f"these have {found[3]} channels behind height and width, so use a data set with {found[3]}"
    if len(found) == 4 and found[2:] == (size, size):
        return f"these have {found[1]} channels, so use a data set with {found[1]}"
    if len(found) == 4 and channels in (found[1], found[3]):
        sides = found[2:] if found[1] == channels else found[1:3]
        return f"these have {sides[0]}x{sides[1]} pixels, so use a data set of that size, as distilled images are not resized"
    return "reshape them to that before they are saved"
