"""First and second derivatives of a ConvNet by hand: the convolutions are torch's, all between them is `kernels`'.

For networks of blocks of 3x3 convolution, norm (instance, group, layer or none), ReLU and average pooling (or none) before one
linear layer. A `Sweep` is a pass forward and back of the loss L: value v and gradient q of every layer's output.

phi(theta, X) = <grad L(theta, X), a> is the derivative of L along a. So one pass forward, which carries each value's derivative
vd along a (forward mode), and one pass back through both give the gradient of phi, that is `Derivatives.second`. With p for the
gradient of phi with respect to a layer's output, that with respect to its derivative is q, which a sweep has found before. The
passes back are

    convolution   p -> convT(p, W) + convT(q, Wd);  dW = p * v + q * vd
    norm          x = (u - mean u) r,  xd = r (ud - mean ud - x mean(x ud)),  y = g x + b
                  p -> r (P p' - x mean(q xd)),  p' = p - r slope q - mean(q x) (xd + r slope x),  slope = mean(x ud),
                  with P z = z - mean z - x mean(x z), and p = g p_y + gd q_y, q = g q_y of the affine part
    ReLU          where y > 0; average pooling and flattening: as values
    cross-entropy phi = <s sum(y) - y, ld> / B with s = softmax(l), the labels y as probabilities

So a sweep takes 3 convolutions a layer and the rest 6; a sweep without the weights' gradients, for a second derivative where
none was kept, 2. Autograd takes 3 and 9.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from src.maths import kernels
from src.maths.kernels import Between, Norm
from src.maths.networks import FlatNetwork
from src.settings.experts import PenaltyOf
from src.settings.networks import ConvNet, Network

Parts = dict[str, Tensor]  # a network's parameters, their directions, or their gradients, by name
REACH = 1  # of a 3x3 kernel: padding beyond it becomes pixels, as convolutions in bfloat16 have no fast kernel for it


@dataclass(frozen=True)
class Block:
    """Convolution `name`, norm `norm` (None: there is none), ReLU and pooling."""

    name: str
    norm: str | None
    padding: int
    between: Between


@dataclass(frozen=True)
class Passed:
    """What a sweep found at a block: of x (B, C, H, W), which its convolution takes to u, and of v, which it gives."""

    x: Tensor
    u: Tensor
    norm: Norm
    q: Tensor | None = None  # dL/dv
    q_u: Tensor | None = None  # dL/du


@dataclass(frozen=True)
class Sweep:
    """A pass of the loss forward and back."""

    passed: tuple[Passed, ...]
    features: Tensor  # (B, F), what the classifier takes
    logits: Tensor  # (B, K)


@dataclass(frozen=True)
class Weights:
    """Of a block: its convolution's weight as it is stored, and its factors (C,)."""

    weight: Tensor
    bias: Tensor
    gain: Tensor
    shift: Tensor


class ByHand:
    """The derivatives of a network's cross-entropy, in the precision of theta, or between layers in bfloat16.

    Labels are classes (B,) or probabilities (B, K).
    """

    def __init__(self, network: FlatNetwork, bfloat16: bool):
        """Raises TypeError where the network has other layers."""
        self._network = network
        self._blocks, self._classifier = _blocks(network)
        self._bfloat16 = bfloat16

    def first(self, theta: Tensor, batch: Tensor, labels: Tensor) -> Tensor:
        """The gradient with respect to theta, (P,)."""
        return self.sweep(theta, batch, labels)[0]

    @torch.no_grad()
    def sweep(self, theta: Tensor, batch: Tensor, labels: Tensor) -> tuple[Tensor, Sweep]:
        """The gradient with respect to theta, (P,), and all it was made of, for `second` at the same point."""
        parts = self._network.unflatten(theta)
        sweep = self._forward(parts, batch)
        q = _of_logits(sweep.logits, labels)
        found: Parts = {}
        sweep = self._back(parts, sweep, q, found)
        return self._flat(found), sweep

    @torch.no_grad()
    def second(self, theta: Tensor, batch: Tensor, labels: Tensor, a: Tensor, sweep: Sweep | None = None) -> tuple[Tensor, ...]:
        """The gradient of <first, a> with respect to theta (P,), batch (B, C, H, W) and, if probabilities, labels (B, K).

        `sweep` is what there was found at theta, batch and labels; None: it is done again, and changes no bit.
        """
        parts, along = self._network.unflatten(theta), self._network.unflatten(a)
        if sweep is None:
            sweep = self._forward(parts, batch)
            sweep = self._back(parts, sweep, _of_logits(sweep.logits, labels), None)
        duals, features_d = self._forward_along(parts, along, sweep, None)
        weight, weight_d, bias_d = parts[f"{self._classifier}.weight"], *self._pair(along, self._classifier)
        logits_d = F.linear(features_d, weight, bias_d) + F.linear(sweep.features, weight_d)
        p, q, *of_labels = _of_both(sweep.logits, logits_d, labels)
        found: Parts = {}
        p_u = self._back_along(parts, along, sweep, duals, features_d, p, q, found)
        first = sweep.passed[0]
        of_batch = self._to_images(first.x, p_u, parts, first.q_u, along)
        return self._flat(found), _like(of_batch, batch), *of_labels

    @torch.no_grad()
    def of_inputs(self, theta: Tensor, batch: Tensor, labels: Tensor, of: PenaltyOf) -> tuple[Tensor, Sweep]:
        """The gradient to the batch (B, C, H, W) of what the gradient penalty looks at, and the sweep that found it.

        Labels are classes (B,).
        """
        parts = self._network.unflatten(theta)
        sweep = self._forward(parts, batch)
        sweep = self._back(parts, sweep, _of_penalised(sweep.logits, labels, of), None)
        first = sweep.passed[0]
        assert first.q_u is not None
        return _like(self._to_images(first.x, first.q_u, parts, None, None), batch), sweep

    @torch.no_grad()
    def along_inputs(self, theta: Tensor, batch_d: Tensor, sweep: Sweep, labels: Tensor, of: PenaltyOf) -> Tensor:
        """The gradient with respect to theta (P,) of <u, batch_d>, where u is what `of_inputs` gives, with its sweep."""
        parts = self._network.unflatten(theta)
        duals, features_d = self._forward_along(parts, None, sweep, self._images(batch_d, sweep.passed[0].u.dtype))
        found: Parts = {}
        q = _of_penalised(sweep.logits, labels, of)
        p = torch.zeros_like(q)
        if of == "loss":
            s, logits_d = sweep.logits.softmax(1), F.linear(features_d, parts[f"{self._classifier}.weight"])
            p = s * (logits_d - (s * logits_d).sum(1, keepdim=True))
        self._back_along(parts, None, sweep, duals, features_d, p, q, found)
        return self._flat(found)

    def sweep_bytes(self, batch: Tensor) -> int:
        """Memory of a sweep over a batch (B, C, H, W), but for its first block's images and the classifier's."""
        side, pixels = batch.shape[-1] + 2 * (self._blocks[0].padding - REACH), 0
        for block in self._blocks:
            width = self._network.width(block.name)
            pixels += 2 * width * side**2  # u and its gradient
            side //= block.between.pool
            pixels += 2 * width * side**2  # v and its gradient
        return len(batch) * pixels * (2 if self._bfloat16 else batch.element_size())

    def _forward(self, parts: Parts, batch: Tensor) -> Sweep:
        x, passed = self._images(batch, torch.bfloat16 if self._bfloat16 else batch.dtype), []
        for block in self._blocks:
            one = self._weights(parts, block, x)
            u = _convolved(x, one.weight)
            v, norm = kernels.forward(block.between, u, one.bias, one.gain, one.shift)
            passed.append(Passed(x, u, norm))
            x = v
        features = x.to(batch.dtype).flatten(1)
        return Sweep(tuple(passed), features, F.linear(features, *self._pair(parts, self._classifier)))

    def _back(self, parts: Parts, sweep: Sweep, of_logits: Tensor, found: Parts | None) -> Sweep:
        """From dL/dlogits those of all blocks' outputs; with `found`, those of the parameters go there."""
        name = self._classifier
        if found is not None:
            found[f"{name}.weight"], found[f"{name}.bias"] = of_logits.t() @ sweep.features, of_logits.sum(0)
        q = self._unflattened(of_logits @ parts[f"{name}.weight"], sweep)
        done: list[Passed] = []
        for number, block in reversed(list(enumerate(self._blocks))):
            at = sweep.passed[number]
            one = self._weights(parts, block, at.x)
            q_u, of_gain, of_shift = kernels.backward(block.between, at.u, at.norm, one.gain, one.shift, q)
            done.insert(0, Passed(at.x, at.u, at.norm, q, q_u))
            wanted = [number > 0, found is not None]
            if any(wanted):
                q, of_weight = _back_through(q_u, at.x, one.weight, wanted)
            if found is not None:
                self._keep(found, block, parts, of_weight, of_gain, of_shift, q_u)
        return Sweep(tuple(done), sweep.features, sweep.logits)

    def _forward_along(
        self, parts: Parts, along: Parts | None, sweep: Sweep, x_d: Tensor | None
    ) -> tuple[list[tuple[Tensor | None, Tensor, Norm]], Tensor]:
        """Of every block (x_d, u_d, norm_d), and the features' derivative, along the parameters' and the images'."""
        duals = []
        for block, at in zip(self._blocks, sweep.passed, strict=True):
            one = self._weights(parts, block, at.x)
            direction = _still(one) if along is None else self._weights(along, block, at.x, is_direction=True)
            terms = [] if x_d is None else [_convolved(x_d, one.weight)]
            if along is not None:
                terms.append(_convolved(at.x, direction.weight))
            u_d, more = (*terms, None)[:2]
            assert u_d is not None
            given = (at.u, at.norm, one.gain, one.shift, u_d, more, direction.bias, direction.gain, direction.shift)
            v_d, norm_d = kernels.forward_along(block.between, *given)
            duals.append((x_d, u_d, norm_d))
            x_d = v_d
        assert x_d is not None
        return duals, x_d.to(sweep.features.dtype).flatten(1)

    def _back_along(
        self,
        parts: Parts,
        along: Parts | None,
        sweep: Sweep,
        duals: list[tuple[Tensor | None, Tensor, Norm]],
        features_d: Tensor,
        of_logits: Tensor,
        of_logits_d: Tensor,
        found: Parts,
    ) -> Tensor:
        """The parameters' gradients go to `found`; that of the first convolution's output is returned."""
        name = self._classifier
        found[f"{name}.weight"] = of_logits.t() @ sweep.features + of_logits_d.t() @ features_d
        found[f"{name}.bias"] = of_logits.sum(0)
        p = of_logits @ parts[f"{name}.weight"]
        if along is not None:
            p = p + of_logits_d @ along[f"{name}.weight"]
        p, more = self._unflattened(p, sweep), None
        for number, block in reversed(list(enumerate(self._blocks))):
            at, (x_d, u_d, norm_d) = sweep.passed[number], duals[number]
            one = self._weights(parts, block, at.x)
            direction = _still(one) if along is None else self._weights(along, block, at.x, is_direction=True)
            assert at.q is not None and at.q_u is not None
            given = (at.u, u_d, at.norm, norm_d, one.gain, one.shift, direction.gain, p, more, at.q)
            p_u, of_gain, of_shift = kernels.backward_along(block.between, *given)
            p, of_weight = _back_through(p_u, at.x, one.weight, [number > 0, True])
            if number > 0 and along is not None:
                more, _ = _back_through(at.q_u, at.x, direction.weight, [True, False])
            if x_d is not None:
                of_weight = of_weight.to(one.gain.dtype) + _back_through(at.q_u, x_d, one.weight, [False, True])[1]
            self._keep(found, block, parts, of_weight, of_gain, of_shift, p_u)
        return p_u

    def _to_images(self, x: Tensor, p_u: Tensor, parts: Parts, q_u: Tensor | None, along: Parts | None) -> Tensor:
        """From the gradient of the first convolution's output that of its images, and from q_u through its direction."""
        name, block = f"{self._blocks[0].name}.weight", self._blocks[0]
        direction = None if along is None else along[name]
        if parts[name].shape[1] <= kernels.MOST_INPUTS and not kernels.is_fused(x):
            return kernels.to_images(p_u, parts[name], q_u, direction)
        found, _ = _back_through(p_u, x, self._weight(parts, block, x), [True, False])
        if along is None or q_u is None:
            return found
        return found.to(parts[name].dtype) + _back_through(q_u, x, self._weight(along, block, x), [True, False])[0]

    def _keep(
        self, found: Parts, block: Block, parts: Parts, of_weight: Tensor, of_gain: Tensor, of_shift: Tensor, of_u: Tensor
    ) -> None:
        """A block's gradients by their parameters' names."""
        channels = parts[f"{block.name}.weight"].shape[1]
        found[f"{block.name}.weight"] = of_weight[:, :channels].to(of_gain.dtype)
        if block.norm is None:
            found[f"{block.name}.bias"] = of_shift
            return
        found[f"{block.norm}.weight"], found[f"{block.norm}.bias"] = of_gain, of_shift
        # a norm of each channel by itself takes every bias away
        alone = block.between.groups == len(of_gain)
        found[f"{block.name}.bias"] = torch.zeros_like(of_gain) if alone else of_u.to(of_gain.dtype).sum((0, 2, 3))

    def _weights(self, parts: Parts, block: Block, x: Tensor, is_direction: bool = False) -> Weights:
        bias = parts[f"{block.name}.bias"]
        if block.norm is None:
            gain = torch.zeros_like(bias) if is_direction else torch.ones_like(bias)
            return Weights(self._weight(parts, block, x), bias, gain, torch.zeros_like(bias))
        return Weights(self._weight(parts, block, x), bias, *self._pair(parts, block.norm))

    def _weight(self, parts: Parts, block: Block, x: Tensor) -> Tensor:
        weight = parts[f"{block.name}.weight"]
        missing = x.shape[1] - weight.shape[1]
        return F.pad(weight, (0, 0, 0, 0, 0, missing)).to(x.dtype) if missing else weight.to(x.dtype)

    def _images(self, batch: Tensor, stored: torch.dtype) -> Tensor:
        """With channels last, and padding beyond the kernel's reach as pixels.

        One channel with channels last looks like any other order: a second one, of zeros, ends that.
        """
        beyond, missing = self._blocks[0].padding - REACH, max(0, 2 - batch.shape[1])
        padded = F.pad(batch, (beyond, beyond, beyond, beyond, 0, missing)) if beyond or missing else batch
        return padded.to(stored).contiguous(memory_format=torch.channels_last)

    def _unflattened(self, of_features: Tensor, sweep: Sweep) -> Tensor:
        """As the last block's output is: (B, C, H, W) as it is stored, with channels last."""
        last, between = sweep.passed[-1].u, self._blocks[-1].between
        images, channels, height, width = last.shape
        shaped = of_features.view(images, channels, height // between.pool, width // between.pool)
        return shaped.to(last.dtype).contiguous(memory_format=torch.channels_last)

    def _pair(self, parts: Parts, name: str) -> tuple[Tensor, Tensor]:
        return parts[f"{name}.weight"], parts[f"{name}.bias"]

    def _flat(self, found: Parts) -> Tensor:
        return torch.cat([found[name].reshape(-1) for name in self._network.names])


def knows(spec: Network) -> bool:
    """Whether networks of this specification can be differentiated by hand."""
    return isinstance(spec, ConvNet) and spec.activation == "relu" and spec.pooling != "max" and not spec.keeps_statistics


def problem() -> str:
    """Why there are no kernels on this machine, in words; empty where there are."""
    return kernels.problem()


def _blocks(network: FlatNetwork) -> tuple[list[Block], str]:
    """The blocks, and the classifier's name; raises TypeError where there are layers of another kind."""
    layers, blocks = network.layers(), []
    kinds = [type(layer) for _, layer in layers]
    while layers and isinstance(layers[0][1], nn.Conv2d):
        name, convolution = layers[0]
        norm, groups, eps, pool, layers = None, 0, 0.0, 1, layers[1:]
        called, layer = layers[0]
        if isinstance(layer, nn.GroupNorm):
            norm, groups, eps, layers = called, layer.num_groups, layer.eps, layers[1:]
        if isinstance(layers[0][1], nn.ReLU):
            layers = layers[1:]
        if isinstance(layers[0][1], nn.AvgPool2d):
            pool, layers = 2, layers[1:]
        blocks.append(Block(name, norm, int(cast(nn.Conv2d, convolution).padding[0]), Between(groups, eps, pool)))
    if not blocks or [type(layer) for _, layer in layers] != [nn.Flatten, nn.Linear] or kinds.count(nn.ReLU) != len(blocks):
        raise TypeError(f"no kernels for layers {', '.join(kind.__name__ for kind in kinds)}")
    return blocks, layers[1][0]


def _still(weights: Weights) -> Weights:
    """No direction at all."""
    nothing = torch.zeros_like(weights.gain)
    return Weights(weights.weight, nothing, nothing, nothing)


def _convolved(x: Tensor, weight: Tensor) -> Tensor:
    """Without bias, which the kernels add."""
    return F.conv2d(x, weight, padding=REACH).contiguous(memory_format=torch.channels_last)


def _back_through(q_u: Tensor, x: Tensor, weight: Tensor, wanted: list[bool]) -> tuple[Tensor, Tensor]:
    """From the gradient of a convolution's output those of x and the weight, as far as `wanted`."""
    found = torch.ops.aten.convolution_backward(
        q_u, x, weight, None, [1, 1], [REACH, REACH], [1, 1], False, [0, 0], 1, [*wanted, False]
    )
    return found[0], found[1]


def _like(of_images: Tensor, batch: Tensor) -> Tensor:
    """The gradient of the batch's own pixels, in its precision."""
    beyond, channels = (of_images.shape[-1] - batch.shape[-1]) // 2, batch.shape[1]
    side = slice(beyond, of_images.shape[-1] - beyond)
    return of_images[:, :channels, side, side].to(batch.dtype).contiguous()


def _targets(logits: Tensor, labels: Tensor) -> Tensor:
    if labels.is_floating_point():
        return labels
    return (labels[:, None] == torch.arange(logits.shape[1], device=labels.device)).to(logits.dtype)


def _of_penalised(logits: Tensor, labels: Tensor, of: PenaltyOf) -> Tensor:
    """The gradient of `smoothness.penalised` with respect to the logits (B, K)."""
    if of == "sum":
        return torch.ones_like(logits)
    return logits.softmax(1) - _targets(logits, labels) if of == "loss" else _targets(logits, labels) - 1 / logits.shape[1]


def _of_logits(logits: Tensor, labels: Tensor) -> Tensor:
    """The gradient of the mean cross-entropy with respect to the logits (B, K)."""
    y = _targets(logits, labels)
    return (logits.softmax(1) * y.sum(1, keepdim=True) - y) / len(logits)


def _of_both(logits: Tensor, logits_d: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
    """p and q of the logits (B, K); where labels are probabilities, phi's gradient with respect to these as well."""
    count, y = len(logits), _targets(logits, labels)
    s = logits.softmax(1)
    mean = (s * logits_d).sum(1, keepdim=True)
    whole = y.sum(1, keepdim=True) / count
    gradients = (whole * s * (logits_d - mean), whole * s - y / count)
    return (*gradients, (mean - logits_d) / count) if labels.is_floating_point() else gradients
