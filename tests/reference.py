"""Restated references: the matching loss through the fully unrolled inner loop, and small networks to try it on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from src.maths import augmentation, networks
from src.maths.inner_loop import InnerRule, InnerStep, MatchingGradient
from src.maths.matching import WayPoint
from src.settings.networks import VGG11, ConvNet, Network, ResNet18


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


def unrolled(
    network: Callable[[Tensor, Tensor], Tensor],
    images: Tensor,
    labels: Tensor,
    syn_lr: Tensor,
    theta_start: Tensor,
    steps: Sequence[InnerStep],
    way_points: Sequence[WayPoint],
    rule: InnerRule,
) -> MatchingGradient:
    """The terms, and the gradient of their sum by autograd through the graph of all steps (MTT)."""
    images, syn_lr = images.detach().requires_grad_(), syn_lr.detach().requires_grad_()
    labels = labels.detach().requires_grad_(labels.is_floating_point())
    theta = theta_start.detach().clone().requires_grad_()
    velocity = torch.zeros_like(theta)
    visited = [theta]
    for step in steps:
        logits = network(theta, augmentation.apply(step.draw, images[step.index]))
        loss = rule.coefficient * cross_entropy(logits, labels[step.index])
        (gradient,) = torch.autograd.grad(loss, theta, create_graph=True)
        velocity = rule.momentum * velocity + gradient + rule.weight_decay * theta
        theta = theta - syn_lr * velocity
        visited.append(theta)
    terms = torch.stack([p.weight * ((visited[p.step] - p.target) ** 2).sum() / p.scale for p in way_points])
    of = (images, syn_lr, labels) if labels.requires_grad else (images, syn_lr)
    grad_images, grad_syn_lr, *grad_labels = torch.autograd.grad(terms.sum(), of)
    return MatchingGradient(terms.detach(), grad_images, grad_syn_lr, *grad_labels or (None,))
