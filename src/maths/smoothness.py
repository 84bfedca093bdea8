"""The expert side of AST: clipping loss, gradient penalty, and the figures that say how smooth a trajectory is."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from src.maths.networks import FlatNetwork
from src.settings.experts import Experts, PenaltyOf


def clipping_coefficient(epoch: int, settings: Experts) -> float:
    """Part 1: the coefficient of the cross-entropy, rising linearly over the first epochs, 1 afterwards (0.50 .. 0.95, 1)."""
    if not settings.clipping_loss or epoch >= settings.clipping_epochs:
        return 1.0
    share = epoch / max(settings.clipping_epochs - 1, 1)
    return settings.clipping_start + share * (settings.clipping_end - settings.clipping_start)


def penalised(logits: Tensor, labels: Tensor, of: PenaltyOf) -> Tensor:
    """The number whose gradient to the pixels part 2 penalises, summed over images; logits (B, K), labels (B,)."""
    if of == "sum":
        return logits.sum()
    if of == "centred":
        return (logits.gather(1, labels[:, None])[:, 0] - logits.mean(dim=1)).sum()
    return F.cross_entropy(logits, labels, reduction="sum")


def gradient_penalty(logits: Callable[[Tensor], Tensor], images: Tensor, labels: Tensor, settings: Experts) -> Tensor:
    """Part 2: mean of (||u|| - 1)^2 with u the gradient of what is `penalised` to un-augmented images (B, C, H, W).

    The norm runs over the channels at each pixel ("channels", AST's code) or over the whole image ("image", WGAN-GP).
    """
    images = images.detach().requires_grad_()
    seen = penalised(logits(images), labels, settings.gradient_penalty_of)
    (u,) = torch.autograd.grad(seen, images, create_graph=True)
    return distance_from_one(u, settings.gradient_penalty_axes)


def distance_from_one(u: Tensor, axes: str) -> Tensor:
    """The mean of (||u|| - 1)^2 of derivatives u (B, C, H, W), the norm over these axes."""
    squares = u.square().sum(dim=1 if axes == "channels" else (1, 2, 3))
    # the norm's slope at exactly 0 is infinite: a dead pixel would make the parameters NaN
    norm = squares.clamp_min(torch.finfo(squares.dtype).tiny).sqrt()
    return (norm - 1).square().mean()


def penalty_of(u: Tensor, axes: str) -> tuple[Tensor, Tensor]:
    """The penalty (scalar) of a gradient u (B, C, H, W), as `gradient_penalty` has it, and its own gradient to u."""
    u = u.detach().requires_grad_()
    with torch.enable_grad():
        penalty = distance_from_one(u, axes)
        (of_u,) = torch.autograd.grad(penalty, u)
    return penalty.detach(), of_u


def parameter_steps(trajectory: Tensor) -> Tensor:
    """Squared length of the parameter step of each epoch, (T,), of a trajectory (T + 1, P): small and even is smooth."""
    return trajectory.diff(dim=0).square().sum(dim=1)


def common_logit_steps(trajectory: Tensor, network: FlatNetwork) -> Tensor:
    """The part of the squared step of each epoch, (T,), by which the last layer moves the logits of all classes alike.

    Softmax takes no notice of it, so the cross-entropy's gradient is 0 along it and no student goes there; the gradient
    penalty, which looks at the sum of the logits, drives experts along it.
    """
    steps = [network.last_layer(step) for step in trajectory.diff(dim=0)]
    return torch.tensor([sum(len(rows) * rows.mean(dim=0).square().sum().item() for rows in step) for step in steps])
