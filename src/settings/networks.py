"""The section `networks`: families of networks, a class each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from src.settings.base import Positive, Settings

Norm = Literal["instance", "layer", "group", "batch", "none"]


class Architecture(Settings):
    """What all families of networks share. All read square images of 8x8 to 256x256 pixels, of any number of channels."""

    @property
    def keeps_statistics(self) -> bool:
        """Whether its outputs rest on running statistics beside its parameters: it then can be evaluated, not matched."""
        return getattr(self, "norm", "none") == "batch"

    @property
    def families(self) -> tuple[str, ...]:
        """Modules of src/maths/families that it is built by, in capitals as the settings have them."""
        return (getattr(self, "family", "ConvNet"),)


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


class TextNet(Architecture):
    """Of texts, a column of numbers a character: convolutions along the characters with ReLU, the largest value of each channel
    over them, one linear layer."""

    family: Literal["TextNet"]
    """The family this specification belongs to."""
    depth: Positive = 2
    """Convolutions."""
    width: Positive = 64
    """Channels of every convolution."""
    kernel: Positive = 3
    """Characters that a convolution sees at once; odd, so that it has a middle."""

    @model_validator(mode="after")
    def _has_a_middle(self) -> TextNet:
        if self.kernel % 2 == 0:
            raise ValueError(f"kernel {self.kernel} has no character in its middle: take an odd number")
        return self


class Linear(Architecture):
    """One linear layer on all numbers at once: the projection of what a frozen encoder has made, such as BERT's embeddings."""

    family: Literal["Linear"]
    """The family this specification belongs to."""


def _convnet(value: Any) -> Any:
    """The family that is meant where none is named."""
    return {"family": "ConvNet", **value} if isinstance(value, dict) else value


Encoder = Annotated[
    ConvNet | MLP | LeNet | AlexNet | VGG11 | ResNet18 | TextNet | Linear,
    Field(discriminator="family"),
    BeforeValidator(_convnet),
]


class Encoders(Architecture):
    """Of tuples: an encoder for each modality, whose last linear layer projects into one space of directions. All their
    parameters together are the network's."""

    family: Literal["Encoders"]
    """The family this specification belongs to."""
    embedding: Positive = 64
    """E, dimensions of the common space."""
    encoders: Mapping[str, Encoder]
    """The encoder of each modality, by its name in the data set and in its order."""

    def __hash__(self) -> int:
        return hash(self.model_dump_json())

    @property
    def families(self) -> tuple[str, ...]:
        return ("Encoders", *(encoder.family for encoder in self.encoders.values()))

    @model_validator(mode="after")
    def _is_of_tuples(self) -> Encoders:
        if len(self.encoders) < 2:
            raise ValueError(f"encoders name {len(self.encoders)} modality: a tuple has two or more")
        if any(encoder.keeps_statistics for encoder in self.encoders.values()):
            raise ValueError("an encoder keeps running statistics (norm batch), which no trajectory holds: use norm instance")
        return self


Network = ConvNet | MLP | LeNet | AlexNet | VGG11 | ResNet18 | TextNet | Linear | Encoders
FAMILIES: Mapping[str, type[Network]] = {
    "ConvNet": ConvNet,
    "MLP": MLP,
    "LeNet": LeNet,
    "AlexNet": AlexNet,
    "VGG11": VGG11,
    "ResNet18": ResNet18,
    "Encoders": Encoders,
}  # of the section; those that read no images are encoders alone
