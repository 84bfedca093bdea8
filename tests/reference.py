"""Restated references: the matching loss through the fully unrolled inner loop, and small networks to try it on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from src.maths import augmentation, by_hand, networks
from src.maths.inner_loop import InnerRule, InnerStep, MatchingGradient
from src.maths.inner_updates import Moments
from src.maths.targets.base import Target
from src.maths.targets.nearest import Nearest
from src.maths.targets.real import RealLoss
from src.maths.targets.snapshots import WayPoint
from src.settings.networks import VGG11, ConvNet, Network, ResNet18

needs_kernels = pytest.mark.skipif(bool(by_hand.problem()), reason=f"no kernels on this machine: {by_hand.problem()}")


def small_network(seed: int = 0, channels: int = 2, size: int = 8, classes: int = 5, **spec: Any) -> nn.Module:
    """A float64 ConvNet of a few hundred parameters."""
    chosen = ConvNet(**{"depth": 2, "width": 4, **spec})
    shape = networks.ImageShape(channels, size, classes)
    return networks.build(chosen, shape, torch.Generator().manual_seed(seed)).double()


def vgg11() -> nn.Module:
    """An eighth of VGG11's channels in float64, on (B, 2, 32, 32), 5 classes."""
    return _build(VGG11(family="VGG11", width=8), 32)


def resnet18() -> nn.Module:
    """An eighth of ResNet18's channels in float64, on (B, 2, 16, 16), 5 classes."""
    return _build(ResNet18(family="ResNet18", width=8), 16)


def _build(spec: Network, size: int) -> nn.Module:
    return networks.build(spec, networks.ImageShape(2, size, 5), torch.Generator().manual_seed(0)).double()


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """The batch's mean; labels are classes (B,) or probabilities (B, K)."""
    log_p = logits - logits.logsumexp(1, keepdim=True)
    if labels.is_floating_point():
        return -(labels * log_p).sum(1).mean()
    return -log_p[torch.arange(len(labels)), labels].mean()


def adam(gradient: Tensor, first: Tensor, second: Tensor, number: int) -> tuple[Tensor, Tensor, Tensor]:
    """Adam's direction at its step `number`, and its means."""
    first, second = 0.9 * first + 0.1 * gradient, 0.999 * second + 0.001 * gradient**2
    return first / (1 - 0.9**number) / ((second / (1 - 0.999**number)) ** 0.5 + 1e-8), first, second


def value_of(target: Target, network: Callable[[Tensor, Tensor], Tensor], visited: Sequence[Tensor]) -> tuple[Tensor, int]:
    """A target's value as a differentiable function of theta_0 .. theta_N, and the step that it is taken at."""
    if isinstance(target, RealLoss):
        return target.weight * cross_entropy(network(visited[-1], target.images), target.labels), len(visited) - 1
    if isinstance(target, WayPoint):
        chosen, weight = target.step, target.weight
    else:
        assert isinstance(target, Nearest)
        chosen, weight, best = 0, 1.0, float("inf")
        for step, theta in enumerate(visited[1:], start=1):
            apart = (theta - target.target)[target.first :].detach()
            distance = apart.abs().sum() if target.by == "l1" else (apart**2).sum()
            if distance <= best:
                chosen, best = step, distance.item()
    apart = (visited[chosen] - target.target)[target.first :]
    return weight * (apart**2).sum() / target.scale, chosen


def unrolled(
    network: Callable[[Tensor, Tensor], Tensor],
    images: Tensor,
    labels: Tensor,
    syn_lr: Tensor,
    theta_start: Tensor,
    steps: Sequence[InnerStep],
    targets: Sequence[Target],
    rule: InnerRule,
    moments: Moments | None = None,
    exact: bool = True,
) -> MatchingGradient:
    """The terms, and the gradient of their sum by autograd through the graph of all steps (MTT).

    Not exact, as TESLA has it: each step's gradient is taken at a theta that is held constant.
    """
    images, syn_lr = images.detach().requires_grad_(), syn_lr.detach().requires_grad_()
    labels = labels.detach().requires_grad_(labels.is_floating_point())
    theta = theta_start.detach().clone().requires_grad_()
    moments = moments or Moments(torch.zeros_like(theta), torch.zeros_like(theta))
    first, second, visited = moments.first, moments.second, [theta]
    for number, step in enumerate(steps, start=moments.steps + 1):
        at = theta if exact else theta.detach().requires_grad_()
        logits = network(at, augmentation.apply(step.draw, images[step.index]))
        loss = rule.coefficient * cross_entropy(logits, labels[step.index])
        (gradient,) = torch.autograd.grad(loss, at, create_graph=True)
        gradient = gradient + rule.weight_decay * at
        if rule.optimiser == "adam":
            direction, first, second = adam(gradient, first, second, number)
        else:
            direction = first = rule.momentum * first + gradient
        theta = theta - syn_lr * direction
        visited.append(theta)
    found = [value_of(target, network, visited) for target in targets]
    terms = torch.stack([value for value, _ in found])
    of = (images, syn_lr, labels) if labels.requires_grad else (images, syn_lr)
    grads = torch.autograd.grad(terms.sum(), of, allow_unused=True)
    grad_images, grad_syn_lr, *grad_labels = (x if g is None else g for x, g in zip(of, grads, strict=True))
    return MatchingGradient(terms.detach(), grad_images, grad_syn_lr, *grad_labels or (None,), tuple(step for _, step in found))
