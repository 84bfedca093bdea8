"""Networks with drawn parameters, and the flat view of these that trajectories are made of."""

from __future__ import annotations

import importlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call

from src.ground.errors import UserError
from src.settings.networks import Encoders, Network


@dataclass(frozen=True)
class ImageShape:
    """What a network reads and says: channels C, side of the square image in pixels, classes K."""

    channels: int
    size: int
    classes: int

    @property
    def batch(self) -> tuple[int, ...]:
        """(C, H, W), the shape of one image."""
        return self.channels, self.size, self.size


@dataclass(frozen=True)
class Modality:
    """One of a tuple: images and spectrograms (C, H, W), texts (numbers, characters), vectors (F,)."""

    name: str
    shape: tuple[int, ...]

    @property
    def numbers(self) -> int:
        """D_m, of one item."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class TupleShape:
    """What encoders of tuples read: rows of all modalities' numbers, one after the other."""

    modalities: tuple[Modality, ...]

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(one.name for one in self.modalities)

    @property
    def sizes(self) -> tuple[int, ...]:
        """D_1 .. D_M, numbers of each modality."""
        return tuple(one.numbers for one in self.modalities)

    @property
    def batch(self) -> tuple[int, ...]:
        """(D,), the shape of one tuple."""
        return (sum(self.sizes),)


Shape = ImageShape | TupleShape


def build(spec: Network, shape: Shape, generator: torch.Generator) -> nn.Module:
    """The network of `spec` in float32, with parameters drawn from `generator` by torch's default rules.

    Raises UserError where the image is too small for it, or the width does not fit the norm.
    """
    with torch.device("meta"):  # nothing is drawn twice, and nothing from the global state
        network = assembled(spec, shape)
    _allocate(network)
    _initialise(network, generator)
    return network


def check(spec: Network, shape: Shape, who: str) -> None:
    """Raises UserError where `build` would; `who` says whose network it is."""
    try:
        with torch.device("meta"):
            assembled(spec, shape)
    except UserError as error:
        raise UserError(f"{who}: {error}") from None


def assembled(spec: Network, shape: Shape) -> nn.Module:
    """A network of `spec` with torch's own initialisation, built by the family's module: no other one is loaded.

    Raises UserError where the image is too small for it, or the width does not fit the norm.
    """
    family = importlib.import_module(f"src.maths.families.{spec.family.lower()}")
    if isinstance(spec, Encoders):
        assert isinstance(shape, TupleShape)
        own = [assembled(spec.encoders[one.name], _read_by_encoder(one, spec.embedding)) for one in shape.modalities]
        encoders: nn.Module = family.TupleEncoders(own, [one.shape for one in shape.modalities])
        return encoders
    assert isinstance(shape, ImageShape)
    return nn.Sequential(*family.layers(spec, shape.channels, shape.size, shape.classes))


def _read_by_encoder(modality: Modality, embedding: int) -> ImageShape:
    """As the families name shapes: a text's numbers are channels, a vector has one pixel, and classes are the embedding's."""
    channels, size, *_ = (*modality.shape, 1)
    return ImageShape(channels, size, embedding)


def _allocate(network: nn.Module) -> None:
    """What `to_empty` does from the meta device to the CPU, which imports symbolic mathematics for a third of a second."""
    for module in network.modules():
        for name, parameter in module.named_parameters(recurse=False):
            setattr(module, name, nn.Parameter(torch.empty(parameter.shape)))
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, torch.empty(buffer.shape, dtype=buffer.dtype))


def _initialise(network: nn.Module, generator: torch.Generator) -> None:
    """torch's default initialisation, drawn from `generator` instead of the global state."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Conv1d | nn.Linear):
            fan_in = module.weight[0].numel()
            bound = fan_in**-0.5  # kaiming_uniform_ with a = sqrt(5), and the bias's bound
            with torch.no_grad():
                module.weight.uniform_(-bound, bound, generator=generator)
                if module.bias is not None:
                    module.bias.uniform_(-bound, bound, generator=generator)
        elif isinstance(module, nn.GroupNorm | nn.BatchNorm2d):
            module.reset_parameters()  # ones, zeros and fresh statistics: nothing is drawn
        elif any(True for _ in module.parameters(recurse=False)):
            raise TypeError(f"no rule draws the parameters of {type(module).__name__}")


def forward_flops(network: nn.Module, images: Tensor) -> int:
    """Floating-point operations of one forward pass of images (B, C, H, W) or tuples: two for each multiplication of layers.

    torch's own counter imports the compiler, two seconds, which the stages that do not compile would wait for.
    """
    counted: list[int] = []

    def count(layer: nn.Module, _: object, output: Tensor) -> None:
        assert isinstance(layer.weight, Tensor)
        counted.append(2 * output.numel() * layer.weight[0].numel())

    layers = [module for module in network.modules() if isinstance(module, nn.Conv2d | nn.Conv1d | nn.Linear)]
    hooks = [layer.register_forward_hook(count) for layer in layers]
    try:
        with torch.no_grad():
            network(images)
    finally:
        for hook in hooks:
            hook.remove()
    return sum(counted)


class FlatNetwork:
    """A network as a function of one flat parameter vector theta (P,) and images (B, C, H, W), or tuples (B, D).

    Order and shapes of the parameters are `named_parameters()`'s; `convolutions` names the slices of convolution weights, those
    along texts among them, `parts` is how many parameters the encoder of each modality has, () of a network that is not made of
    encoders.
    """

    def __init__(self, network: nn.Module):
        if any(True for _ in network.buffers()):
            raise UserError(
                "this network keeps running statistics, which are no function of its parameters: "
                "use a norm without them, such as 'instance'"
            )
        self._network = network
        self.names = [name for name, _ in network.named_parameters()]
        self.shapes = [parameter.shape for parameter in network.parameters()]
        self.sizes = [parameter.numel() for parameter in network.parameters()]
        self.dimension = sum(self.sizes)  # P
        self.parts = tuple(sum(own.numel() for own in one.parameters()) for one in getattr(network, "encoders", ()))
        ends = torch.tensor(self.sizes).cumsum(0).tolist()
        kinds = nn.Conv2d | nn.Conv1d
        weights = {f"{name}.weight" for name, module in network.named_modules() if isinstance(module, kinds)}
        self.convolutions = [
            slice(end - size, end) for name, size, end in zip(self.names, self.sizes, ends, strict=True) if name in weights
        ]

    def __call__(self, theta: Tensor, images: Tensor, **which: int) -> Tensor:
        """Logits (B, K); of encoders directions (B, M, E), or (n, E) of the items (n, D_m) of one `modality`."""
        outputs: Tensor = functional_call(self._network, self.unflatten(theta), (images,), which)
        return outputs

    def forward_flops(self, images: Tensor) -> int:
        """Floating-point operations of one forward pass of images (B, C, H, W)."""
        return forward_flops(self._network, images)

    def width(self, name: str) -> int:
        """Channels that a convolution gives."""
        return self.shapes[self.names.index(f"{name}.weight")][0]

    def layers(self) -> list[tuple[str, nn.Module]]:
        """The layers, one after the other, with the names of their parameters."""
        return list(self._network.named_children())

    def features(self, theta: Tensor, images: Tensor) -> Tensor:
        """What the last linear layer reads, (B, F): the penultimate embedding."""
        _, last = self._last_linear
        read: list[Tensor] = []
        hook = last.register_forward_pre_hook(lambda _, inputs: read.append(inputs[0]))
        try:
            self(theta, images)
        finally:
            hook.remove()
        return read[0]

    def last_layer(self, theta: Tensor) -> tuple[Tensor, ...]:
        """Views into theta: the last linear layer's weight (K, F) and bias (K,)."""
        name, last = self._last_linear
        parts = self.unflatten(theta)
        return tuple(parts[f"{name}.{own}"] for own, _ in last.named_parameters())

    @property
    def _last_linear(self) -> tuple[str, nn.Linear]:
        return [(name, module) for name, module in self._network.named_modules() if isinstance(module, nn.Linear)][-1]

    def unflatten(self, theta: Tensor) -> dict[str, Tensor]:
        """Views into theta, by parameter name."""
        parts = theta.split(self.sizes)
        return {n: part.view(shape) for n, part, shape in zip(self.names, parts, self.shapes, strict=True)}


def spread(syn_lr: Tensor, parts: Sequence[int]) -> Tensor:
    """The learning rate of each parameter (P,), or the one of all ()."""
    return syn_lr.repeat_interleave(torch.tensor(parts, device=syn_lr.device)) if parts else syn_lr


def flatten(network: nn.Module) -> Tensor:
    """A new vector (P,) that shares no memory with the network, so that a snapshot can't change afterwards."""
    return torch.cat([parameter.detach().reshape(-1) for parameter in network.parameters()])
