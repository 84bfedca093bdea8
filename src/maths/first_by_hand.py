"""The first derivative of a ConvNet's cross-entropy by hand: the operations of autograd without its bookkeeping.

For eager work on small networks, which takes more time to start operations than to compute; `by_hand` has the second one.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from src.maths.by_hand import Parts, convolution_back, known_layers, pooled, spread, where_positive
from src.maths.networks import FlatNetwork

First = Callable[[Tensor, Tensor, Tensor], Tensor]
Back = Callable[[Tensor], Tensor]  # gradient of a layer's output -> that of its input


def first_of(network: object) -> First | None:
    """`Derivatives.first` of a network of the layers that `by_hand` knows; None where it has others.

    A function of (theta (P,), batch (B, C, H, W), labels (B,) or (B, K)).
    """
    layers = known_layers(network)
    if layers is None:
        return None
    assert isinstance(network, FlatNetwork)

    def first(theta: Tensor, batch: Tensor, labels: Tensor) -> Tensor:
        with torch.no_grad():
            return _first(network, layers, theta, batch, labels)

    return first


def _first(network: FlatNetwork, layers: list[tuple[str, nn.Module]], theta: Tensor, batch: Tensor, labels: Tensor) -> Tensor:
    parts = network.unflatten(theta)
    found: Parts = {}
    backs: list[Back] = []
    value = batch
    for name, layer in layers:
        value, back = _forward(layer, name, value, parts, found, is_first=value is batch)
        backs.append(back)
    p = _loss_back(value, labels)
    for back in reversed(backs):
        p = back(p)
    return torch.cat([found[name].reshape(-1) for name in network.names])


def _forward(layer: nn.Module, name: str, value: Tensor, parts: Parts, found: Parts, is_first: bool) -> tuple[Tensor, Back]:
    """A layer's output, and its pass back, which puts the gradients of its parameters into `found`."""
    if isinstance(layer, nn.Conv2d):
        return _convolution(layer, name, value, parts, found, is_first)
    if isinstance(layer, nn.Linear):
        return _linear(name, value, parts, found)
    if isinstance(layer, nn.GroupNorm):
        return _norm(layer, name, value, parts, found)
    if isinstance(layer, nn.ReLU):
        return F.relu(value), lambda p: where_positive(p, value)
    if isinstance(layer, nn.AvgPool2d):
        return pooled(value), lambda p: spread(p, value)
    return value.flatten(1), lambda p: p.view(value.shape)


def _convolution(layer: nn.Conv2d, name: str, value: Tensor, parts: Parts, found: Parts, is_first: bool) -> tuple[Tensor, Back]:
    weight, bias = parts[f"{name}.weight"], parts[f"{name}.bias"]
    padding = [int(side) for side in layer.padding]

    def back(p: Tensor) -> Tensor:
        found[f"{name}.bias"] = p.sum((0, 2, 3))
        through, found[f"{name}.weight"] = convolution_back(p, value, weight, padding, [not is_first, True])
        return through  # None before the first layer, where nobody reads it

    return F.conv2d(value, weight, bias, padding=padding), back


def _linear(name: str, value: Tensor, parts: Parts, found: Parts) -> tuple[Tensor, Back]:
    weight = parts[f"{name}.weight"]

    def back(p: Tensor) -> Tensor:
        found[f"{name}.weight"] = p.t() @ value
        found[f"{name}.bias"] = p.sum(0)
        return p @ weight

    return F.linear(value, weight, parts[f"{name}.bias"]), back


def _norm(layer: nn.GroupNorm, name: str, value: Tensor, parts: Parts, found: Parts) -> tuple[Tensor, Back]:
    images, channels, height, width = value.shape
    gain = parts[f"{name}.weight"]
    sizes = (images, channels, height * width, layer.num_groups)
    y, mean, r = torch.ops.aten.native_group_norm(value, gain, parts[f"{name}.bias"], *sizes, layer.eps)

    def back(p: Tensor) -> Tensor:
        through, found[f"{name}.weight"], found[f"{name}.bias"] = torch.ops.aten.native_group_norm_backward(
            p, value, mean, r, gain, *sizes, [True, True, True]
        )
        return through  # type: ignore[no-any-return]

    return y, back


def _loss_back(logits: Tensor, labels: Tensor) -> Tensor:
    """The gradient of the mean cross-entropy with respect to the logits (B, K)."""
    y = labels if labels.is_floating_point() else F.one_hot(labels, logits.shape[1]).to(logits.dtype)
    return (logits.softmax(1) * y.sum(1, keepdim=True) - y) / len(logits)
