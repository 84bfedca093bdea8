"""The second derivative of a ConvNet by hand, for eager work: half the operations that double differentiation starts.

phi(theta, X) = <grad L(theta, X), a> is the derivative of the loss L along a. So one pass forward, which carries each value v
with its derivative vd along a (forward mode), and one pass back through both give the gradient of phi: that is
`Derivatives.second`. With p and q for the gradients of phi with respect to a layer's output and to its derivative, the passes
back are

    convolution   p -> convT(p, W) + convT(q, Wd),  q -> convT(q, W);  dW = p * v + q * vd
    norm          x = (u - mean u) r,  xd = r (ud - mean ud - x mean(x ud)),  y = g x + b;  see `_norm_back`
    ReLU          both where v > 0; average pooling and flattening: both alike
    cross-entropy phi = <s sum(y) - y, ld> / B with s = softmax(l), the labels y as probabilities

Small networks take more time to start operations than to compute: 10 images of 8x8 take 1.5 times less, 100 1.3 times.
Compiled code gains nothing by it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from src.maths.networks import FlatNetwork

Parts = dict[str, Tensor]  # a network's parameters, or their directions, by name
Second = Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, ...]]


@dataclass(frozen=True)
class Dual:
    """A value and its derivative along a; None for what does not depend on theta."""

    value: Tensor
    along: Tensor | None


Back = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]  # (p, q) of a layer's output -> those of its input


def second_of(network: object) -> Second | None:
    """`Derivatives.second` of a network of these layers; None where it has others.

    A function of (theta (P,), batch (B, C, H, W), labels (B,) or (B, K), a (P,)).
    """
    layers = known_layers(network)
    if layers is None:
        return None
    assert isinstance(network, FlatNetwork)

    def second(theta: Tensor, batch: Tensor, labels: Tensor, a: Tensor) -> tuple[Tensor, ...]:
        with torch.no_grad():
            return _second(network, layers, theta, batch, labels, a)

    return second


def known_layers(network: object) -> list[tuple[str, nn.Module]] | None:
    """A network's layers with their names; None where there is one that is not differentiated by hand."""
    if not isinstance(network, FlatNetwork):
        return None
    layers = network.layers()
    known = isinstance(layers[0][1], nn.Conv2d) and all(_is_known(layer) for _, layer in layers)
    return layers if known else None


def _is_known(layer: nn.Module) -> bool:
    if isinstance(layer, nn.Conv2d):
        return layer.stride == layer.dilation == (1, 1) and layer.groups == 1 and layer.bias is not None
    if isinstance(layer, nn.AvgPool2d):
        return layer.kernel_size == layer.stride == 2
    return isinstance(layer, nn.GroupNorm | nn.ReLU | nn.Flatten | nn.Linear)


def _second(
    network: FlatNetwork, layers: list[tuple[str, nn.Module]], theta: Tensor, batch: Tensor, labels: Tensor, a: Tensor
) -> tuple[Tensor, ...]:
    parts, along = network.unflatten(theta), network.unflatten(a)
    found: Parts = {}
    backs: list[Back] = []
    dual = Dual(batch, None)
    for name, layer in layers:
        dual, back = _forward(layer, name, dual, parts, along, found)
        backs.append(back)
    p, q, *of_labels = _loss_back(dual, labels)
    for back in reversed(backs):
        p, q = back(p, q)
    return torch.cat([found[name].reshape(-1) for name in network.names]), p, *of_labels


def _forward(layer: nn.Module, name: str, dual: Dual, parts: Parts, along: Parts, found: Parts) -> tuple[Dual, Back]:
    """A layer's output, and its pass back, which puts the gradients of its parameters into `found`."""
    if isinstance(layer, nn.Conv2d):
        return _convolution(layer, name, dual, parts, along, found)
    if isinstance(layer, nn.Linear):
        return _linear(name, dual, parts, along, found)
    assert dual.along is not None
    if isinstance(layer, nn.GroupNorm):
        return _norm(layer, name, dual.value, dual.along, parts, along, found)
    if isinstance(layer, nn.ReLU):
        value = dual.value
        return Dual(F.relu(value), where_positive(dual.along, value)), lambda p, q: (
            where_positive(p, value), where_positive(q, value)
        )  # fmt: skip
    if isinstance(layer, nn.AvgPool2d):
        value = dual.value
        return Dual(pooled(value), pooled(dual.along)), lambda p, q: (spread(p, value), spread(q, value))
    shape = dual.value.shape
    return Dual(dual.value.flatten(1), dual.along.flatten(1)), lambda p, q: (p.view(shape), q.view(shape))


def where_positive(gradient: Tensor, value: Tensor) -> Tensor:
    return torch.ops.aten.threshold_backward(gradient, value, 0)  # type: ignore[no-any-return]


def pooled(value: Tensor) -> Tensor:
    """Average pooling by twos, (B, C, H, W) -> (B, C, H / 2, W / 2).

    Pairs of rows times a matrix, where the sides are even: torch's own kernel reads number by number, five times slower.
    """
    images, channels, height, width = value.shape
    if height % 2 or width % 2:
        return F.avg_pool2d(value, 2)
    pairs = value.reshape(-1, 2 * width)
    return (pairs @ _quarters(width, value.dtype, value.device)).view(images, channels, height // 2, width // 2)


def spread(gradient: Tensor, value: Tensor) -> Tensor:
    """The pass back of `pooled(value)`."""
    height, width = value.shape[-2:]
    if height % 2 or width % 2:
        return torch.ops.aten.avg_pool2d_backward(gradient, value, [2, 2], [2, 2], [0, 0], False, True, None)  # type: ignore[no-any-return]
    rows = gradient.reshape(-1, width // 2)
    return (rows @ _quarters(width, value.dtype, value.device).t()).view(value.shape)


@functools.cache
def _quarters(width: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """(2 W, W / 2): two rows of pixels, one after the other, to the means of their squares of four."""
    square = torch.eye(width // 2, dtype=dtype, device=device).repeat_interleave(2, dim=0) / 4
    return torch.cat((square, square))


def _convolution(layer: nn.Conv2d, name: str, dual: Dual, parts: Parts, along: Parts, found: Parts) -> tuple[Dual, Back]:
    weight, bias, weight_d, bias_d = _pair(name, parts, along)
    padding = [int(side) for side in layer.padding]
    value, value_d = dual.value, dual.along
    out_d = F.conv2d(value, weight_d, bias_d, padding=padding)
    if value_d is not None:
        out_d += F.conv2d(value_d, weight, padding=padding)

    def back(p: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
        found[f"{name}.bias"] = p.sum((0, 2, 3))
        first, of_weight = convolution_back(p, value, weight, padding, [True, True])
        through, _ = convolution_back(q, value, weight_d, padding, [True, False])
        first += through
        if value_d is None:
            found[f"{name}.weight"] = of_weight
            return first, first  # nothing lies before the images
        second, of_weight_d = convolution_back(q, value_d, weight, padding, [True, True])
        found[f"{name}.weight"] = of_weight + of_weight_d
        return first, second

    return Dual(F.conv2d(value, weight, bias, padding=padding), out_d), back


def convolution_back(
    gradient: Tensor, value: Tensor, weight: Tensor, padding: list[int], wanted: list[bool]
) -> tuple[Tensor, Tensor]:
    found = torch.ops.aten.convolution_backward(
        gradient, value, weight, None, [1, 1], padding, [1, 1], False, [0, 0], 1, [*wanted, False]
    )
    return found[0], found[1]


def _linear(name: str, dual: Dual, parts: Parts, along: Parts, found: Parts) -> tuple[Dual, Back]:
    weight, bias, weight_d, bias_d = _pair(name, parts, along)
    value, value_d = dual.value, dual.along
    assert value_d is not None

    def back(p: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
        found[f"{name}.weight"] = p.t() @ value + q.t() @ value_d
        found[f"{name}.bias"] = p.sum(0)
        return p @ weight + q @ weight_d, q @ weight

    return Dual(F.linear(value, weight, bias), F.linear(value_d, weight, bias_d) + F.linear(value, weight_d)), back


def _pair(name: str, parts: Parts, along: Parts) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Weight and bias of a layer, and their directions."""
    return parts[f"{name}.weight"], parts[f"{name}.bias"], along[f"{name}.weight"], along[f"{name}.bias"]


def _norm(
    layer: nn.GroupNorm, name: str, u: Tensor, u_d: Tensor, parts: Parts, along: Parts, found: Parts
) -> tuple[Dual, Back]:
    """Values (B, C, H, W) as (B, G, members) of each group's own, and the factors of the channels as (1, C, 1, 1)."""
    images, channels, height, width = u.shape
    grouped = (images, layer.num_groups, channels // layer.num_groups * height * width)
    gain, shift, gain_d, shift_d = (one.view(1, -1, 1, 1) for one in _pair(name, parts, along))
    x, _, r = torch.ops.aten.native_group_norm(u, None, None, images, channels, height * width, layer.num_groups, layer.eps)
    x, r, u_d = x.view(grouped), r.view(images, layer.num_groups, 1), u_d.reshape(grouped)
    slope = (x * u_d).mean(2, keepdim=True)
    x_d = torch.addcmul(u_d, x, slope, value=-1).sub_(u_d.mean(2, keepdim=True)).mul_(r)
    y = torch.addcmul(shift, x.view(u.shape), gain)
    y_d = torch.addcmul(shift_d, x.view(u.shape), gain_d).addcmul_(x_d.view(u.shape), gain)

    def back(p: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
        found[f"{name}.weight"] = torch.addcmul(p * x.view(u.shape), q, x_d.view(u.shape)).sum((0, 2, 3))
        found[f"{name}.bias"] = p.sum((0, 2, 3))
        of_x_d = (q * gain).view(grouped)
        of_x = (p * gain).addcmul_(q, gain_d).view(grouped)
        return tuple(one.view(u.shape) for one in _norm_back(of_x, of_x_d, x, x_d, slope, r))  # type: ignore[return-value]

    return Dual(y, y_d), back


def _norm_back(p: Tensor, q: Tensor, x: Tensor, x_d: Tensor, slope: Tensor, r: Tensor) -> tuple[Tensor, Tensor]:
    """From the gradients with respect to x and xd (B, G, members) those with respect to u and ud.

    With the projection P z = z - mean z - x mean(x z), of which u -> x and ud -> xd are r times each, and slope = mean(x ud):

        q -> r P q
        p -> r (P p' - x mean(q xd)),  p' = p - r slope q - mean(q x) (xd + r slope x)

    as r, x and slope all change with u, and ud is xd / r + slope x but for its mean.
    """
    pull = (q * x).mean(2, keepdim=True)
    second = torch.addcmul(q, x, pull, value=-1).sub_(q.mean(2, keepdim=True)).mul_(r)
    steep = r * slope
    first = torch.addcmul(p, q, steep, value=-1).addcmul_(x_d, pull, value=-1).addcmul_(x, pull * steep, value=-1)
    lean = torch.addcmul(first * x, q, x_d).mean(2, keepdim=True)
    return first.sub_(first.mean(2, keepdim=True)).addcmul_(x, lean, value=-1).mul_(r), second


def _loss_back(dual: Dual, labels: Tensor) -> tuple[Tensor, ...]:
    """p and q of the logits (B, K); where labels are probabilities, the gradient with respect to these as well."""
    logits, logits_d = dual.value, dual.along
    assert logits_d is not None
    count, soft = len(logits), labels.is_floating_point()
    y = labels if soft else F.one_hot(labels, logits.shape[1]).to(logits.dtype)
    s = logits.softmax(1)
    mean = (s * logits_d).sum(1, keepdim=True)
    whole = y.sum(1, keepdim=True) / count
    gradients = (whole * s * (logits_d - mean), whole * s - y / count)
    return (*gradients, (mean - logits_d) / count) if soft else gradients
