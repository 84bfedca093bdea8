"""The section `networks`: families of networks, a class each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from src.settings.base import Positive, Settings

Norm = Literal["instance", "layer", "group", "batch", "none"]


class Architecture(Settings):
    """What all families of networks share. All read square images of 8x8 to 224x224 pixels, of any number of channels."""

    @property
    def keeps_statistics(self) -> bool:
        """Whether its outputs rest on running statistics beside its parameters: it then can be evaluated, not matched."""
        return getattr(self, "norm", "none") == "batch"


class ConvNet(Architecture):
    """Depth blocks of 3x3 convolution, norm, activation, pooling; then one linear layer. D3 W128 is the field's for 32x32."""

    family: Literal["ConvNet"] = "ConvNet"
    """The family this specification belongs to; where it is left out, ConvNet."""
    depth: Positive
    """D, number of blocks; with pooling each halves the side, so 2^D must not exceed it."""
    width: Positive
    """W, channels of every convolution."""
    norm: Norm = "instance"
    """Normalisation, affine: one group a channel (instance), one group (layer), four groups (group), or over the batch with
    running statistics for testing (batch: for evaluation only)."""
    activation: Literal["relu", "leaky_relu", "sigmoid", "gelu"] = "relu"
    """Pointwise nonlinearity after the norm."""
    pooling: Literal["avg", "max", "none"] = "avg"
    """2x2 pooling with stride 2 at the end of each block."""


class MLP(Architecture):
    """Linear layers with ReLU between them, on all pixels at once. The field's has two hidden layers of 128."""

    family: Literal["MLP"]
    """The family this specification belongs to."""
    depth: Positive = 2
    """Hidden layers."""
    width: Positive = 128
    """Units of each hidden layer."""


class LeNet(Architecture):
    """Two 5x5 convolutions with ReLU and max pooling, three linear layers, no norm. Images below 32x32 are padded to it, as
    the field does with 28x28; larger ones end in an average pooling to the 5x5 that 32x32 ends in."""

    family: Literal["LeNet"]
    """The family this specification belongs to."""


class AlexNet(Architecture):
    """The field's for 32x32: five convolutions with ReLU, three max poolings, one linear layer, no norm. Other images end in
    4x4 too: larger ones by an average pooling, smaller ones without the first poolings; 28x28 is padded to 32x32."""

    family: Literal["AlexNet"]
    """The family this specification belongs to."""


class VGG11(Architecture):
    """Eight 3x3 convolutions with norm and ReLU, five max poolings, one linear layer, as the field has it for 32x32. Larger
    images end in a global average, smaller ones go without the first poolings; 28x28 is padded to 32x32."""

    family: Literal["VGG11"]
    """The family this specification belongs to."""
    width: Positive = 64
    """Channels of the first convolution; the later ones have 2, 4 and 8 times as many."""
    norm: Norm = "instance"
    """Normalisation after each convolution, as ConvNet's."""


class ResNet18(Architecture):
    """A stem, eight residual blocks in four stages, global average, one linear layer. Below 128 pixels the stem is a 3x3
    convolution without pooling (the field's for 32x32), from there on 7x7 with stride 2 and max pooling (ImageNet's). Below
    32x32 the first stages don't halve the side where the last one would end in less than 4x4."""

    family: Literal["ResNet18"]
    """The family this specification belongs to."""
    width: Positive = 64
    """Channels of the stem and the first stage; the later ones have 2, 4 and 8 times as many."""
    norm: Norm = "instance"
    """Normalisation after each convolution, as ConvNet's."""


Network = ConvNet | MLP | LeNet | AlexNet | VGG11 | ResNet18
FAMILIES: Mapping[str, type[Network]] = {
    "ConvNet": ConvNet,
    "MLP": MLP,
    "LeNet": LeNet,
    "AlexNet": AlexNet,
    "VGG11": VGG11,
    "ResNet18": ResNet18,
}
