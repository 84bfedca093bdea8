"""Restated references: the matching loss through the fully unrolled inner loop, and small networks to try it on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from src.ground.settings import Network
from src.maths import augmentation, networks
from src.maths.inner_loop import InnerRule, InnerStep
from src.maths.matching import WayPoint


def small_network(seed: int = 0, channels: int = 2, size: int = 8, classes: int = 5, **spec: Any) -> nn.Module:
    """A float64 ConvNet of a few hundred parameters."""
    chosen = Network(**{"depth": 2, "width": 4, **spec})
    shape = networks.ImageShape(channels, size, classes)
    return networks.build(chosen, shape, torch.Generator().manual_seed(seed)).double()


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    log_p = logits - logits.logsumexp(1, keepdim=True)
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
) -> tuple[Tensor, Tensor, Tensor]:
    """Terms (M,) and their sum's gradients to images and syn_lr, by autograd through the graph of all steps (MTT)."""
    images, syn_lr = images.detach().requires_grad_(), syn_lr.detach().requires_grad_()
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
    grad_images, grad_syn_lr = torch.autograd.grad(terms.sum(), (images, syn_lr))
    return terms.detach(), grad_images, grad_syn_lr
