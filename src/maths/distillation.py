"""The outer loop: one iteration moves the synthetic images and syn_lr down the gradient of the matching loss.

Sources: MTT, algorithm 1; AST, section 3 for the parts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from src.ground.errors import DivergenceError
from src.maths import inner_loop, matching
from src.maths.derivatives import Derivatives
from src.maths.inner_loop import InnerRule, InnerStep, MatchingGradient
from src.maths.networks import FlatNetwork
from src.settings.distillation import Distillation

# beyond these a run is lost, though its numbers are finite
LOSS_LIMIT = 1e3  # the student ends some thirty times as far off as the expert went
IMAGE_LIMIT = 1e4  # what networks read has a standard deviation of about 1


@dataclass(frozen=True)
class State:
    """What the outer loop carries from one iteration to the next."""

    images: Tensor  # (S, C, H, W)
    syn_lr: Tensor  # ()
    images_velocity: Tensor  # (S, C, H, W), outer momentum
    syn_lr_velocity: Tensor  # ()


@dataclass(frozen=True)
class Start:
    """Where a student starts and what it is to follow: theta*_s .. theta*_{s+M}, (M + 1, P), and s."""

    snapshots: Tensor
    epoch: int


@dataclass(frozen=True)
class Figures:
    """What one iteration measured, at the synthetic set it started from."""

    terms: list[float]  # one for each way point, weights included; the last is the end point's
    syn_lr: float
    grad_norm_images: float
    grad_norm_syn_lr: float

    @property
    def matching_loss(self) -> float:
        return sum(self.terms)


def start(images: Tensor, settings: Distillation) -> State:
    """The state before the first iteration."""
    syn_lr = torch.tensor(settings.lr_init, dtype=images.dtype, device=images.device)
    return State(images, syn_lr, torch.zeros_like(images), torch.zeros_like(syn_lr))


def draw_start(experts: int, settings: Distillation, generator: torch.Generator) -> tuple[int, int]:
    """An expert and a start epoch s in [0, max_start_epoch), both uniform."""
    expert = int(torch.randint(experts, (), generator=generator))
    return expert, int(torch.randint(settings.max_start_epoch, (), generator=generator))


def iterate(
    network: FlatNetwork,
    derivatives: Derivatives,
    state: State,
    labels: Tensor,
    starts: Sequence[Start],
    settings: Distillation,
    generator: torch.Generator,
) -> tuple[State, Figures]:
    """One iteration against one or several expert trajectories, whose gradients are averaged.

    Raises DivergenceError, leaving `state` good.
    """
    found = [_match(network, derivatives, state, labels, start, settings, generator) for start in starts]
    gradient = MatchingGradient(
        terms=torch.stack([one.terms for one in found]).mean(dim=0),
        images=torch.stack([one.images for one in found]).mean(dim=0),
        syn_lr=torch.stack([one.syn_lr for one in found]).mean(),
        labels=None,
    )
    figures = Figures(gradient.terms.tolist(), state.syn_lr.item(), gradient.images.norm().item(), gradient.syn_lr.abs().item())
    new = _descend(state, gradient, settings)
    _check(figures, new, settings)
    return new, figures


def _match(
    network: FlatNetwork,
    derivatives: Derivatives,
    state: State,
    labels: Tensor,
    start: Start,
    settings: Distillation,
    generator: torch.Generator,
) -> MatchingGradient:
    """The gradient of the matching loss against one trajectory."""
    theta_start = matching.perturb(start.snapshots[0], network.convolutions, settings.weight_perturbation, generator)
    return inner_loop.matching_gradient(
        derivatives,
        state.images,
        labels,
        state.syn_lr,
        theta_start,
        _steps(len(labels), settings, generator, state.images),
        matching.way_points(theta_start, start.snapshots[1:], settings),
        InnerRule(settings.inner_momentum, settings.inner_weight_decay, matching.balance(start.epoch, settings)),
    )


def _steps(count: int, settings: Distillation, generator: torch.Generator, like: Tensor) -> list[InnerStep]:
    batch = settings.batch_syn or count
    drawn = inner_loop.draw_steps(count, settings.syn_steps, batch, settings.augmentation, generator)
    return [InnerStep(step.index.to(like.device), step.draw.to(like.device, like.dtype)) for step in drawn]


def _descend(state: State, gradient: MatchingGradient, settings: Distillation) -> State:
    """SGD with momentum, as torch.optim.SGD has it; syn_lr stops at its lower bound."""
    images_velocity = settings.outer_momentum * state.images_velocity + gradient.images
    syn_lr_velocity = settings.outer_momentum * state.syn_lr_velocity + gradient.syn_lr
    return State(
        images=state.images - settings.lr_img * images_velocity,
        syn_lr=(state.syn_lr - settings.lr_lr * syn_lr_velocity).clamp_min(settings.syn_lr_min),
        images_velocity=images_velocity,
        syn_lr_velocity=syn_lr_velocity,
    )


def _check(figures: Figures, new: State, settings: Distillation) -> None:
    """Raises DivergenceError where a number is not finite, or beyond all sense."""
    gradients = torch.tensor([figures.grad_norm_images, figures.grad_norm_syn_lr])
    largest = new.images.abs().max().item()
    finite = all(torch.isfinite(values).all() for values in (gradients, new.images, new.syn_lr))
    if finite and figures.matching_loss <= LOSS_LIMIT and largest <= IMAGE_LIMIT:
        return
    lost = not figures.matching_loss <= LOSS_LIMIT
    cause = "the student diverged in the inner loop" if lost else "the images' or syn_lr's last step was too large"
    raise DivergenceError(
        f"{cause}: matching loss {figures.matching_loss:g}, gradient norm {figures.grad_norm_images:g} (images) and "
        f"{figures.grad_norm_syn_lr:g} (syn_lr), largest value of the new images {largest:g} at syn_lr {figures.syn_lr:g}: "
        f"lower lr_img ({settings.lr_img:g}), lr_lr ({settings.lr_lr:g}) or lr_init ({settings.lr_init:g}), "
        f"or shorten syn_steps ({settings.syn_steps})"
    )
