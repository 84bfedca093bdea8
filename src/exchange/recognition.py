"""Which network the parameters of an expert belong to, by their shapes alone.

Source: MTT's networks.py. Its ConvNet has the order and shapes of ours (convolution, norm, both with weight and bias, block by
block, then the classifier), so that the parameters one after the other are our theta. Shapes do not tell everything: what they
leave open, `doubts` says.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass

import torch

from src.ground.errors import ArtifactError, UserError
from src.maths import networks
from src.maths.families.shared import FIELD
from src.maths.networks import ImageShape
from src.settings.networks import ConvNet, Network

Shapes = tuple[tuple[int, ...], ...]  # of the parameters of a network, in its own order

KERNEL = (3, 3)
MNIST = 28  # side that the field pads to 32
WIDER = 4  # pixels by which MTT's first convolution makes a side of grey images longer
LARGEST = 1024  # side in pixels; images beyond it are of no ConvNet with pooling
REMEDY = "name the experts' own network"


@dataclass(frozen=True)
class Layout:
    """What the shapes of a ConvNet's parameters tell."""

    depth: int
    width: int
    normed: bool
    channels: int
    classes: int
    features: int  # numbers that the classifier reads of an image

    @property
    def left(self) -> int:
        """Side in pixels of what the classifier reads, one map for each channel of the last block."""
        return math.isqrt(self.features // self.width)


def layout(shapes: Shapes) -> Layout:
    """Raises UserError, with the first parameter that no ConvNet has there."""
    normed = len(shapes) > 4 and len(shapes[2]) in (1, 3)
    each = 4 if normed else 2
    if len(shapes) < 4 or (len(shapes) - 2) % each or len(shapes[0]) != 4:
        raise _foreign(f"{len(shapes)} parameter tensors, the first of shape {_said(shapes[0]) if shapes else 'none'}")
    (width, channels, *_), (classes, features) = shapes[0], (*shapes[-2], 0, 0)[:2]
    found = Layout((len(shapes) - 2) // each, width, normed, channels, classes, features)
    _check_parameters(shapes, found)
    if min(features, width, classes) < 1 or found.left**2 * width != features:
        raise _foreign(f"its classifier reads {features:,} numbers, which are no {width} square maps")
    return found


def network_of(shapes: Shapes) -> tuple[ConvNet, tuple[ImageShape, ...]]:
    """The ConvNet that has parameters of these shapes, and every shape of image that it fits, the likeliest first.

    Instance norm, ReLU and average pooling are taken for granted, as the field's. Raises UserError where it is none.
    """
    found = layout(shapes)
    sides = [side for side in range(1, LARGEST + 1) if _left(side, found.depth) == found.left]
    if not sides:
        raise _foreign(f"its last block leaves {found.left}x{found.left} pixels, of images beyond {LARGEST}x{LARGEST}")
    first = [MNIST] if found.channels == 1 else []
    sides.sort(key=lambda side: (side not in first, side != found.left << found.depth, side != MNIST, side))
    spec = ConvNet(depth=found.depth, width=found.width, norm="instance" if found.normed else "none")
    return spec, tuple(ImageShape(found.channels, side, found.classes) for side in sides)


def check_network(shapes: Shapes, spec: Network, image_shape: ImageShape) -> None:
    """Raises ArtifactError, with the first mismatch, unless the parameters are those of this network for such images."""
    if spec.keeps_statistics:
        raise UserError(
            "norm 'batch' keeps running statistics, which no expert buffer holds: name a network with another norm, "
            "if the experts have another one"
        )
    with torch.device("meta"):  # shapes alone
        network = networks.assembled(spec, image_shape)
    wanted = {name: tuple(parameter.shape) for name, parameter in network.named_parameters()}
    if shapes != tuple(wanted.values()):
        difference = _in_words(shapes, tuple(wanted.values())) if isinstance(spec, ConvNet) else ""
        words = "; ".join(filter(None, (difference, _by_name(shapes, wanted))))
        raise ArtifactError(f"the experts are of another network than the one asked for ({words}): {REMEDY}")


def doubts(spec: Network, image_shape: ImageShape) -> tuple[str, ...]:
    """What shapes can't tell: where the experts differ in it, they fit, yet are of another function."""
    said = ["shapes do not tell instance, group and batch norm apart, nor activations, nor average from max pooling"]
    if not isinstance(spec, ConvNet) or spec.pooling == "none":
        return tuple(said)
    side, left = image_shape.size, _left(image_shape.size, spec.depth)
    if image_shape.channels == 1 and side != MNIST and (side + WIDER) >> spec.depth == left:  # else theirs would not run
        said.append(f"MTT's code pads grey images by 3 pixels whatever their size, where it is 1 here for {side}x{side}")
    if left == 1:
        said.append("a ConvNet that ends in a global average (MTT's ConvNetGAP) has the same shapes")
    return tuple(said)


def _check_parameters(shapes: Shapes, layout: Layout) -> None:
    expected: list[tuple[int, ...]] = []
    for block in range(layout.depth):
        inputs = layout.width if block else layout.channels
        expected += [(layout.width, inputs, *KERNEL), *[(layout.width,)] * (3 if layout.normed else 1)]
    expected += [(layout.classes, layout.features), (layout.classes,)]
    for place, (found, wanted) in enumerate(zip(shapes, expected, strict=True), start=1):
        if found != wanted and len(found) == 3 and found[0] == layout.width:
            what = f"the experts' norm has parameters of shape {_said(found)}, one for each pixel (MTT's layernorm)"
            raise UserError(f"{what}, and no network here has such: use experts with instance norm")
        if found != wanted:
            raise _foreign(f"parameter {place} of {len(shapes)} has the shape {_said(found)}, not {_said(wanted)}")


def _left(side: int, depth: int) -> int:
    """What halving so often leaves of a side; 28 pixels are padded to 32 before."""
    return (FIELD if side == MNIST else side) >> depth


def _in_words(shapes: Shapes, wanted: Shapes) -> str:
    with suppress(UserError):
        one, two = layout(shapes), layout(wanted)
        words = {
            "depth": "they have depth {}, not {}", "width": "they have width {}, not {}",
            "channels": "they read {} channels, not {}", "classes": "they tell {} classes apart, not {}",
            "normed": "they have a norm: {}, not {}",
            "left": "their last block leaves a side of {} pixels, not {}, as of images of another size or without pooling",
        }  # fmt: skip
        for name, text in words.items():
            pair = getattr(one, name), getattr(two, name)
            if pair[0] != pair[1]:
                return text.format(*(str(value).lower() for value in pair))
    return ""


def _by_name(shapes: Shapes, wanted: Mapping[str, tuple[int, ...]]) -> str:
    for found, (name, shape) in zip(shapes, wanted.items(), strict=False):
        if found != shape:
            return f"'{name}' has the shape {_said(found)}, not {_said(shape)}"
    return f"they have {len(shapes)} parameter tensors, not {len(wanted)}"


def _foreign(reason: str) -> UserError:
    return UserError(f"the experts are of no ConvNet of MTT's kind ({reason}): {REMEDY}, as it can't be found out")


def _said(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "a single number"
