"""Training of one expert on the real training split: the trajectory that students are to follow. Source: AST, parts 1 and 2."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from src.ground.errors import DivergenceError
from src.ground.settings import Experts
from src.maths import augmentation, networks, smoothness
from src.maths.networks import FlatNetwork

CHUNK = 64  # images differentiated at once on a CPU: they take a quarter of a usual batch's memory, and caches like them
PASSES, PENALTY_PASSES = 3, 9  # work of one step in forward passes: of the cross-entropy, and of the gradient penalty

# (theta (P,), augmented and plain images (B, C, H, W), labels (B,), coefficient of the cross-entropy ())
# -> gradient of coefficient * cross-entropy + lambda * penalty (P,), cross-entropy (), penalty ()
Gradient = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]


@dataclass(frozen=True)
class Epoch:
    """The expert after `number` epochs (0 is the initialisation)."""

    number: int
    theta: Tensor  # (P,), shares no memory with the training
    train_loss: float  # mean cross-entropy of the epoch's augmented batches, nan at 0
    penalty: float  # mean gradient penalty of the epoch, 0 where it is off


def train(
    network: nn.Module,
    images: Tensor,
    labels: Tensor,
    settings: Experts,
    generator: torch.Generator,
    gradient: Gradient | None = None,
    chunk: int | None = None,
) -> Iterator[Epoch]:
    """Train from the parameters of `network` on images (N, C, H, W) and labels (N,): the initialisation, then each epoch.

    `gradient` is `differentiate`'s, compiled or not (None: of this network, eager, in its own precision); it sees `chunk`
    images at once (None: a whole batch). Raises DivergenceError as soon as an epoch's loss or parameters are not finite.
    """
    gradient = gradient or differentiate(FlatNetwork(network), settings)
    theta = networks.flatten(network).requires_grad_()
    optimiser = _optimiser(theta, settings)
    yield Epoch(0, theta.detach().clone(), float("nan"), 0.0)
    for epoch in range(settings.last_epoch):
        if epoch == settings.epochs // 2 + 1:
            for group in optimiser.param_groups:  # a new optimiser would lose its momentum
                group["lr"] *= settings.lr_drop_factor
        coefficient = theta.new_tensor(smoothness.clipping_coefficient(epoch, settings))
        figures = []
        for index in torch.randperm(len(images), generator=generator).split(settings.batch_size):
            draw = augmentation.draw(settings.augmentation, len(index), generator).to(images.device, images.dtype)
            index = index.to(images.device)
            plain = images[index]
            batch = (augmentation.apply(draw, plain), plain, labels[index])
            theta.grad, losses = _by_chunks(gradient, theta.detach(), batch, coefficient, chunk or len(index))
            optimiser.step()
            figures.append(losses)
        loss, penalty = torch.stack(figures).mean(dim=0).tolist()
        done = Epoch(epoch + 1, theta.detach().clone(), loss, penalty)
        _check_finite(done, settings)
        yield done


def differentiate(network: FlatNetwork, settings: Experts, bfloat16: bool = False) -> Gradient:
    """The derivative of one step's loss, a pure function that compiles.

    With `bfloat16`, convolutions and matrix products run in it; theta, losses and gradients keep their precision.
    """

    def gradient(
        theta: Tensor, augmented: Tensor, plain: Tensor, labels: Tensor, coefficient: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        theta = theta.detach().requires_grad_()

        def logits(batch: Tensor) -> Tensor:
            with torch.autocast(theta.device.type, torch.bfloat16, enabled=bfloat16):
                found = network(theta, batch)
            return found.to(theta.dtype)

        loss = F.cross_entropy(logits(augmented), labels)
        penalty = torch.zeros_like(loss)
        if settings.gradient_penalty:
            penalty = smoothness.gradient_penalty(logits, plain, settings.gradient_penalty_axes)
        (found,) = torch.autograd.grad(coefficient * loss + settings.gradient_penalty * penalty, theta)
        return found, loss.detach(), penalty.detach()

    return gradient


def passes(settings: Experts, images: int) -> int:
    """Work of training one expert on so many images, in forward passes of one image."""
    return settings.last_epoch * images * (PASSES + (PENALTY_PASSES if settings.gradient_penalty else 0))


def _by_chunks(
    gradient: Gradient, theta: Tensor, batch: tuple[Tensor, Tensor, Tensor], coefficient: Tensor, chunk: int
) -> tuple[Tensor, Tensor]:
    """The gradient (P,) of a whole batch, and its cross-entropy and penalty (2,): all are means over images."""
    total, losses = torch.zeros_like(theta), theta.new_zeros(2)
    for augmented, plain, labels in zip(*(part.split(chunk) for part in batch), strict=True):
        share = len(labels) / len(batch[2])
        found, loss, penalty = gradient(theta, augmented, plain, labels, coefficient)
        total = total + share * found
        losses = losses + share * torch.stack((loss, penalty))
    return total, losses


def _optimiser(theta: Tensor, settings: Experts) -> torch.optim.Optimizer:
    if settings.optimiser == "adam":
        return torch.optim.Adam([theta], lr=settings.lr, weight_decay=settings.weight_decay)
    return torch.optim.SGD([theta], lr=settings.lr, momentum=settings.momentum, weight_decay=settings.weight_decay)


def _check_finite(epoch: Epoch, settings: Experts) -> None:
    if not (torch.isfinite(epoch.theta).all() and torch.isfinite(torch.tensor([epoch.train_loss, epoch.penalty])).all()):
        raise DivergenceError(
            f"the expert diverged in epoch {epoch.number} (train loss {epoch.train_loss}, gradient penalty {epoch.penalty}, "
            f"lr {settings.lr}): lower the experts' lr, or their gradient_penalty ({settings.gradient_penalty})"
        )
