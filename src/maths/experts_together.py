"""Several experts at once by vmap, as one on a GPU leaves most of it idle: each with its own order, draws and schedule.

The arithmetic of each is that of `expert_training`, a step for a step; only rounding knows how many are beside it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import grad, vmap

from src.maths import derivatives, expert_training, smoothness
from src.maths.by_hand import ByHand
from src.maths.derivatives import Backend, Loss
from src.maths.expert_training import Gradient, State
from src.maths.networks import FlatNetwork
from src.settings.experts import Experts


def differentiate(
    network: FlatNetwork,
    settings: Experts,
    bfloat16: bool = False,
    backend: Backend = "eager",
    task_loss: Loss = F.cross_entropy,
) -> Gradient:
    """`expert_training.differentiate` for G experts, by autograd or fused: all that it takes and gives is stacked, (G, ...)."""

    def loss(
        theta: Tensor, augmented: Tensor, plain: Tensor, labels: Tensor, coefficient: Tensor
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        def logits(batch: Tensor) -> Tensor:
            with torch.autocast(theta.device.type, torch.bfloat16, enabled=bfloat16):
                found = network(theta, batch)
            return found.to(theta.dtype)

        cross_entropy = task_loss(logits(augmented), labels)
        penalty = torch.zeros_like(cross_entropy)
        if settings.gradient_penalty:
            u = grad(lambda images: smoothness.penalised(logits(images), labels, settings.gradient_penalty_of))(plain)
            penalty = smoothness.distance_from_one(u, settings.gradient_penalty_axes)
        return coefficient * cross_entropy + settings.gradient_penalty * penalty, (cross_entropy, penalty)

    def gradient(
        thetas: Tensor, augmented: Tensor, plain: Tensor, labels: Tensor, coefficients: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        each = vmap(grad(loss, has_aux=True))
        found, (cross_entropies, penalties) = each(thetas, augmented, plain, labels, coefficients)
        return found, cross_entropies, penalties

    if backend == "fused":
        return derivatives.built(_one_by_one(expert_training.by_hand(ByHand(network, bfloat16), settings)), backend)
    # experts fill a GPU by vmap, and its memory, of which a recording would take as much again
    return gradient if backend == "graphs" else derivatives.built(gradient, backend)


def _one_by_one(alone: Gradient) -> Gradient:
    """By hand there is no vmap; in a recording the experts follow each other without a pause."""

    def gradient(
        thetas: Tensor, augmented: Tensor, plain: Tensor, labels: Tensor, coefficients: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        each = zip(thetas, augmented, plain, labels, coefficients, strict=True)
        found, losses, penalties = zip(*(alone(*given) for given in each), strict=True)
        return torch.stack(found), torch.stack(losses), torch.stack(penalties)

    return gradient


def steps(
    states: Sequence[State], images: Tensor, labels: Tensor, settings: Experts, gradient: Gradient
) -> Iterator[tuple[State, ...]]:
    """The states after each further step of those that have taken fewest, until all have finished their last epoch.

    Experts that begin together so stay together, and those that were interrupted meet again. Raises DivergenceError as soon as
    an epoch's loss or parameters are not finite, or absurd.
    """
    states = tuple(states)
    while any(state.epochs < settings.last_epoch for state in states):
        fewest = min(state.steps for state in states)
        stepped = iter(_step([state for state in states if state.steps == fewest], images, labels, settings, gradient))
        states = tuple(next(stepped) if state.steps == fewest else state for state in states)
        for state in states:
            if state.between_epochs and state.steps == fewest + 1:
                expert_training.check(state, settings)
        yield states


def _step(states: Sequence[State], images: Tensor, labels: Tensor, settings: Experts, gradient: Gradient) -> list[State]:
    """One step of experts that have taken equally many."""
    drawn = [expert_training.draw(state, len(images), settings) for state in states]
    batches = zip(*(expert_training.batch_of(one, images, labels) for one in drawn), strict=True)
    thetas = torch.stack([state.theta for state in states])
    coefficients = expert_training.on(thetas, [smoothness.clipping_coefficient(state.epochs, settings) for state in states])
    augmented, plain, targets = map(torch.stack, batches)
    found, *figures = gradient(thetas, augmented, plain, targets, coefficients)
    if settings.sharpness:
        higher = expert_training.uphill(thetas, found, settings)
        found, *_ = gradient(higher, augmented, plain, targets, coefficients)
    each = zip(states, drawn, found, *figures, strict=True)
    return [expert_training.after(state, one, slope, torch.stack(losses), settings) for state, one, slope, *losses in each]
