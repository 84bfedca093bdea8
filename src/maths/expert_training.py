"""Training of one expert on the real training split: the trajectory that students are to follow. Source: AST, parts 1 and 2."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from src.ground.errors import DivergenceError
from src.ground.settings import Experts
from src.maths import augmentation, networks, smoothness


@dataclass(frozen=True)
class Epoch:
    """The expert after `number` epochs (0 is the initialisation)."""

    number: int
    theta: Tensor  # (P,), shares no memory with the network
    train_loss: float  # mean cross-entropy of the epoch's augmented batches, nan at 0
    penalty: float  # mean gradient penalty of the epoch, 0 where it is off


def train(network: nn.Module, images: Tensor, labels: Tensor, settings: Experts, generator: torch.Generator) -> Iterator[Epoch]:
    """Train `network` in place on images (N, C, H, W) and labels (N,), yielding the initialisation and each epoch.

    Raises DivergenceError as soon as an epoch's loss or parameters are not finite.
    """
    yield Epoch(0, networks.flatten(network), float("nan"), 0.0)
    optimiser = _optimiser(network, settings)
    for epoch in range(settings.epochs):
        if epoch == settings.epochs // 2 + 1:
            for group in optimiser.param_groups:  # a new optimiser would lose its momentum
                group["lr"] *= settings.lr_drop_factor
        losses, penalties = [], []
        for index in torch.randperm(len(images), generator=generator).split(settings.batch_size):
            draw = augmentation.draw(settings.augmentation, len(index), generator).to(images.device, images.dtype)
            index = index.to(images.device)
            loss, penalty = _losses(network, images[index], labels[index], draw, settings)
            optimiser.zero_grad()
            (smoothness.clipping_coefficient(epoch, settings) * loss + settings.gradient_penalty * penalty).backward()
            optimiser.step()
            losses.append(loss.detach())
            penalties.append(penalty.detach())
        done = Epoch(
            epoch + 1,
            networks.flatten(network),
            torch.stack(losses).mean().item(),
            torch.stack(penalties).mean().item(),
        )
        _check_finite(done, settings)
        yield done


def _optimiser(network: nn.Module, settings: Experts) -> torch.optim.Optimizer:
    if settings.optimiser == "adam":
        return torch.optim.Adam(network.parameters(), lr=settings.lr, weight_decay=settings.weight_decay)
    return torch.optim.SGD(network.parameters(), lr=settings.lr, momentum=settings.momentum, weight_decay=settings.weight_decay)


def _losses(
    network: nn.Module, images: Tensor, labels: Tensor, draw: augmentation.Draw, settings: Experts
) -> tuple[Tensor, Tensor]:
    """Cross-entropy of the augmented batch and gradient penalty of the un-augmented one."""
    loss = F.cross_entropy(network(augmentation.apply(draw, images)), labels)
    if settings.gradient_penalty == 0:
        return loss, torch.zeros_like(loss)
    return loss, smoothness.gradient_penalty(network, images, settings.gradient_penalty_axes)


def _check_finite(epoch: Epoch, settings: Experts) -> None:
    if not (torch.isfinite(epoch.theta).all() and torch.isfinite(torch.tensor([epoch.train_loss, epoch.penalty])).all()):
        raise DivergenceError(
            f"the expert diverged in epoch {epoch.number} (train loss {epoch.train_loss}, gradient penalty {epoch.penalty}, "
            f"lr {settings.lr}): lower the experts' lr, or their gradient_penalty ({settings.gradient_penalty})"
        )
