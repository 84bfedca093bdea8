"""Images as somebody saved them -> pixels (S, C, H, W) in float32: their order of axes, and the space that they are in.

What the user says about the space is compared with the numbers: a mistake there gives a set that trains students to nothing,
without any other sign. Distilled pixels leave [0, 1], a quarter of them even [-0.5, 3], but keep a mean well above 0, which
normalised images lose, or leave far behind where their pixels had drifted: the bounds below lie between the sets of
data/released and the same sets normalised. `sure` goes before.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

from torch import Tensor

from src.ground.errors import ArtifactError, UserError
from src.maths.networks import ImageShape
from src.maths.pixels import Normalisation, Space, Whitening

SpaceName = Literal["pixels", "normalised", "whitened"]

BYTE = 255  # the largest integer of a pixel
LOW, HIGH = -0.5, 3.0  # what numbers of pixels seldom lie outside of
FEW, MANY = 0.02, 0.3  # shares of them that do: images may be normalised, are no pixels
CENTRED = 0.2  # mean / std: pixels have 0.3 to 1.2, normalised images -0.3 to 0.1, and up to 0.6 where half of them lie beyond
OFF = 0.5  # mean / std that ten normalised images seldom have: their brightness scatters by half a std, its mean by 0.15
INSIDE = 0.4  # share of numbers in [0, 1]: pixels have 0.46 to 1, those that have drifted 0.2, normalised images 0.05 to 0.2
MEANS = (-0.25, 1.5)  # that the mean of pixels lies between, for sure: whitened ones have drifted to 1.3
MTT_FIGURES: Mapping[str, tuple[tuple[float, ...], tuple[float, ...]]] = {  # mean and std that MTT's utils.py normalises by
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),  # this std is not the data set's, which is 0.247 and more
    "cifar100": ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
    "tiny_imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}
SURE = "or import it with `sure`"


def arranged(images: Tensor, shape: ImageShape, title: str) -> tuple[Tensor, tuple[str, ...]]:
    """(S, C, H, W) of the channels and size given, and what was done for it. Raises ArtifactError on any other shape."""
    one, last = (shape.channels, shape.size, shape.size), (shape.size, shape.size, shape.channels)
    found = tuple(images.shape)
    if not images.numel():
        raise ArtifactError(f"{title} holds images of shape {found}, which are none: give the file of a synthetic set")
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
    if name != "pixels":
        return _undone(found, name, _space(space, name, found), sure, title), notes
    if not sure:
        _check_pixels(found, title)
    return found, notes


def _undone(images: Tensor, name: SpaceName, space: Space, sure: bool, title: str) -> Tensor:
    """Pixels of images in the space of this name."""
    if not sure:
        _check_no_pixels(images, name, title)
    pixels = space.to_pixels(images)
    if not pixels.isfinite().all():
        raise ArtifactError(f"{title} holds {name} images whose pixels are not finite: check the data set's mean and std")
    if not sure:
        remedy = f"check the data set, its mean and std, and whether the images are whitened, {SURE}"
        _check_mean(pixels, title, f"looks otherwise than {name} as this data set is", remedy)
    return pixels


def _unit(images: Tensor, name: SpaceName, title: str) -> tuple[Tensor, tuple[str, ...]]:
    """In float32; integers 0 to 255, also such as are saved as real numbers, become pixels in [0, 1]."""
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
    share = _beyond(images)
    if lowest >= 0 and share > FEW:
        raise ArtifactError(f"{title} looks like pixels of 0 to {BYTE}: {bounds}, not of 0 to 1: divide by {BYTE}, {SURE}")
    if share > MANY or (share > FEW and _centre(images) < CENTRED):
        mean = f"{bounds}, their mean is {float(images.mean()):.2g}, and {share:.0%} of them lie below {LOW} or beyond {HIGH:g}"
        raise ArtifactError(f"{title} looks normalised: {mean}: say that it is normalised or whitened, {SURE}")
    _check_mean(images, title, "looks like no pixels", f"say that it is normalised or whitened, {SURE}")


def _check_no_pixels(images: Tensor, name: SpaceName, title: str) -> None:
    inside = float(((images >= 0) & (images <= 1)).float().mean())
    centre = _centre(images)
    if inside == 1 or (inside > INSIDE and centre > CENTRED) or (centre > OFF and _beyond(images) <= MANY):
        share = "all" if inside == 1 else f"{inside:.0%}"
        bounds = f"{share} of its numbers lie in [0, 1], with mean {float(images.mean()):.2f}"
        raise ArtifactError(
            f"{title} looks like pixels: {bounds}, where {name} images have 0: say that they are pixels, {SURE}"
        )


def _beyond(images: Tensor) -> float:
    """Share of the numbers that pixels seldom have."""
    return float(((images < LOW) | (images.abs() > HIGH)).float().mean())


def _centre(images: Tensor) -> float:
    """Mean by standard deviation; of images that are all one number, their side of 0."""
    mean, std = float(images.mean()), float(images.std(correction=0))
    return mean / std if std else math.copysign(math.inf, mean)


def _check_mean(pixels: Tensor, title: str, words: str, remedy: str) -> None:
    mean = float(pixels.mean())
    if not MEANS[0] <= mean <= MEANS[1]:
        raise ArtifactError(f"{title} {words}: its pixels have mean {mean:.3g}, where those of images lie in [0, 1]: {remedy}")


def _space(space: Space | None, name: SpaceName, images: Tensor) -> Space:
    """The data set's space, if it is the one that the images are said to be in, and for such images."""
    if name == "whitened" and isinstance(space, Whitening):
        size, numbers = len(space.mean), images[0].numel()
    elif name == "normalised" and isinstance(space, Normalisation):
        size, numbers = len(space.mean), images.shape[1]
    else:
        has = "is not known" if space is None else f"is another one, {type(space).__name__.lower()}"
        needs = (
            "a data set with whitening 'zca'" if name == "whitened" else "the mean and std that the images were normalised by"
        )
        raise UserError(f"images said to be {name} are undone by the data set's space, which {has}: give {needs}")
    if size != numbers:
        what = f"the data set's space is for {size:,} numbers of an image or channels, but the images have {numbers:,}"
        raise UserError(f"{what}: use the data set that these images were distilled from")
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
