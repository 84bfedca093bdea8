"""The ConvNet family, and the flat view of a network's parameters that trajectories are made of.

Sources: MTT and AST (section Networks of both papers' experiments); D3 W128 is the field's network for 32x32.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call

from src.ground.errors import UserError
from src.ground.settings import Network

GROUPS: Mapping[str, Callable[[int], int]] = {
    "instance": lambda width: width,
    "layer": lambda width: 1,
    "group": lambda width: 4,
}
ACTIVATIONS: Mapping[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "leaky_relu": lambda: nn.LeakyReLU(0.01),
    "sigmoid": nn.Sigmoid,
    "gelu": nn.GELU,
}
POOLINGS: Mapping[str, Callable[[int], nn.Module]] = {"avg": nn.AvgPool2d, "max": nn.MaxPool2d}


@dataclass(frozen=True)
class ImageShape:
    """What a network reads and says: channels C, side of the square image in pixels, classes K."""

    channels: int
    size: int
    classes: int


def build(spec: Network, shape: ImageShape, generator: torch.Generator) -> nn.Module:
    """A ConvNet in float32 with parameters drawn from `generator` by torch's default rules.

    28x28 images are padded to 32x32 in the first convolution, as the field does. Raises UserError where the image is too
    small for the depth, or the width does not fit the norm.
    """
    side = 32 if shape.size == 28 else shape.size
    _check(spec, side)
    layers: list[nn.Module] = []
    channels = shape.channels
    for block in range(spec.depth):
        padding = 3 if block == 0 and shape.size == 28 else 1
        layers.append(nn.Conv2d(channels, spec.width, kernel_size=3, padding=padding))
        if spec.norm != "none":
            layers.append(nn.GroupNorm(GROUPS[spec.norm](spec.width), spec.width))
        layers.append(ACTIVATIONS[spec.activation]())
        if spec.pooling != "none":
            layers.append(POOLINGS[spec.pooling](2))
            side //= 2
        channels = spec.width
    layers += [nn.Flatten(), nn.Linear(spec.width * side * side, shape.classes)]
    network = nn.Sequential(*layers)
    _initialise(network, generator)
    return network


def _check(spec: Network, side: int) -> None:
    if spec.pooling != "none" and side < 2**spec.depth:
        raise UserError(
            f"network depth {spec.depth} halves a side of {side} pixels below 1: "
            f"use depth {side.bit_length() - 1} or less, or pooling 'none'"
        )
    if spec.norm == "group" and spec.width % 4:
        raise UserError(f"norm 'group' makes 4 groups, but width {spec.width} is not a multiple of 4: choose one that is")


def _initialise(network: nn.Module, generator: torch.Generator) -> None:
    """torch's default initialisation, drawn from `generator` instead of the global state."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            fan_in = module.weight[0].numel()
            bound = fan_in**-0.5  # kaiming_uniform_ with a = sqrt(5), and the bias's bound
            with torch.no_grad():
                module.weight.uniform_(-bound, bound, generator=generator)
                if module.bias is not None:
                    module.bias.uniform_(-bound, bound, generator=generator)


class FlatNetwork:
    """A network as a function of one flat parameter vector theta (P,) and images (B, C, H, W).

    Order and shapes of the parameters are `named_parameters()`'s; `convolutions` names the slices of convolution weights.
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
        ends = torch.tensor(self.sizes).cumsum(0).tolist()
        weights = {f"{name}.weight" for name, module in network.named_modules() if isinstance(module, nn.Conv2d)}
        self.convolutions = [
            slice(end - size, end) for name, size, end in zip(self.names, self.sizes, ends, strict=True) if name in weights
        ]

    def __call__(self, theta: Tensor, images: Tensor) -> Tensor:
        """Logits (B, K)."""
        logits: Tensor = functional_call(self._network, self.unflatten(theta), (images,))
        return logits

    def unflatten(self, theta: Tensor) -> dict[str, Tensor]:
        """Views into theta, by parameter name."""
        parts = theta.split(self.sizes)
        return {n: part.view(shape) for n, part, shape in zip(self.names, parts, self.shapes, strict=True)}


def flatten(network: nn.Module) -> Tensor:
    """A new vector (P,) that shares no memory with the network, so that a snapshot can't change afterwards."""
    return torch.cat([parameter.detach().reshape(-1) for parameter in network.parameters()])
