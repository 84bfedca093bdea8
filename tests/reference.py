"""Restated references: the matching loss through the fully unrolled inner loop, and small networks to try it on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from src.ground.settings import Network
from src.maths import augmentation, networks
from src.maths.inner_loop import InnerRule, InnerStep, MatchingGradient
from src.maths.matching import WayPoint


def small_network(seed: int = 0, channels: int = 2, size: int = 8, classes: int = 5, **spec: Any) -> nn.Module:
    """A float64 ConvNet of a few hundred parameters."""
    chosen = Network(**{"depth": 2, "width": 4, **spec})
    shape = networks.ImageShape(channels, size, classes)
    return networks.build(chosen, shape, torch.Generator().manual_seed(seed)).double()


def vgg11() -> nn.Module:
    """torchvision's VGG11 in float64 on (B, 2, 32, 32), instance norm after each convolution, an eighth of its channels."""
    network = _without_storage("vgg11")
    layers: list[nn.Module] = []
    for layer in network.features:
        layers += [layer, nn.GroupNorm(layer.out_channels, layer.out_channels)] if isinstance(layer, nn.Conv2d) else [layer]
    network.features = nn.Sequential(*layers)
    network.avgpool, network.classifier = nn.Identity(), nn.Linear(512, 5, device="meta")  # a pixel is left of 32 x 32
    return _narrow(network, 8)


def resnet18() -> nn.Module:
    """torchvision's ResNet18 in float64 on (B, 2, 16, 16), with instance norm and the usual stem of small images, narrow."""
    network = _without_storage("resnet18", norm_layer=lambda width: nn.GroupNorm(width, width), num_classes=5)
    network.conv1 = nn.Conv2d(3, 64, kernel_size=3, padding=1, bias=False, device="meta")
    network.maxpool = nn.Identity()
    return _narrow(network, 8)


def _without_storage(name: str, **options: Any) -> Any:
    import torchvision

    with torch.device("meta"):
        return torchvision.models.get_model(name, weights=None, **options)


def _narrow(network: nn.Module, by: int) -> nn.Module:
    """The network with its channels divided, 2 channels at the input, parameters drawn anew."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for name, layer in list(network.named_modules()):
            if isinstance(layer, nn.Conv2d):
                inputs = 2 if layer.in_channels == 3 else layer.in_channels // by
                shape = {n: getattr(layer, n) for n in ("kernel_size", "stride", "padding")}
                network.set_submodule(name, nn.Conv2d(inputs, layer.out_channels // by, bias=layer.bias is not None, **shape))
            elif isinstance(layer, nn.GroupNorm):
                network.set_submodule(name, nn.GroupNorm(layer.num_groups // by, layer.num_channels // by))
            elif isinstance(layer, nn.Linear):
                network.set_submodule(name, nn.Linear(layer.in_features // by, layer.out_features))
    return network.double()


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
