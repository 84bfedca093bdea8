"""The inner loop: student training on the synthetic set, and the exact gradient of its loss through all of it.

The student takes N steps with learning rate alpha (syn_lr) on the loss L_t of step t, of SGD with momentum mu for one:

    g_t = grad L_t(theta_t);   m_{t+1} = mu * m_t + g_t;   theta_{t+1} = theta_t - alpha * m_{t+1}

and its loss is the sum of the values that targets have at some theta_n: all that is asked of a target is that value and its
gradient, the pull. Instead of keeping the graph of all N steps, the recursion is reversed. With lam the adjoint of theta_{t+1},
a that of g_t and nu what step t + 1 passed back to m_{t+1}, from lam = nu = 0, for t = N - 1 .. 0:

    lam += pull of the targets at theta_{t+1}
    a    = nu - alpha * lam
    dL/dalpha -= <lam, m_{t+1}>                            with m_{t+1} = (theta_t - theta_{t+1}) / alpha
    (h, q) = gradient of <grad L_t(theta, X), a> with respect to (theta, X) at theta_t, a held constant
    lam += h;   dL/dX += q;   nu = mu * a

It is exact, Hessian terms included, and keeps P numbers a step: the graph of one step lives at a time. Where these leave some
of the memory that a loop may take, the last steps also keep their sweep, what the first derivative found on its way: it saves
the second one a quarter of its work and changes no bit.

Without h it is the gradient of TESLA (arXiv 2211.10586), which takes theta_t for independent of the images of earlier steps.
The update and its adjoint, what is said of m and a, are those of `inner_updates`, which has Adam as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from src.maths import augmentation, networks
from src.maths.augmentation import Draw
from src.maths.by_hand import Sweep
from src.maths.derivatives import Derivatives
from src.maths.inner_updates import Moments, Optimiser, Update, rest, update_of
from src.maths.targets.base import Target


@dataclass(frozen=True)
class InnerStep:
    """What is random in one student step, drawn before it: which synthetic images, and their augmentation."""

    index: Tensor  # (B,) into the S synthetic images
    draw: Draw


@dataclass(frozen=True)
class InnerRule:
    """The student's update: momentum mu of SGD, L2 decay, and the coefficient of the balanced loss. L_t has the last two."""

    momentum: float
    weight_decay: float
    coefficient: float
    optimiser: Optimiser = "sgd"
    parts: tuple[int, ...] = ()  # of tuples: parameters that each modality's learning rate moves


@dataclass(frozen=True)
class Student:
    """Where a student stands."""

    theta: Tensor  # (P,)
    moments: Moments


@dataclass(frozen=True)
class MatchingGradient:
    """The loss that the student ends with, and its gradient."""

    terms: Tensor  # (M,) one for each target, weights included; their sum is the loss
    images: Tensor  # (S, C, H, W), or tuples (S, D)
    syn_lr: Tensor  # (), of tuples (M,)
    labels: Tensor | None  # (S, K) where labels are real numbers
    steps: tuple[int, ...] = ()  # at which the targets were reached
    ended: Student | None = None  # after the last step


def draw_steps(count: int, steps: int, batch: int, kinds: Sequence[str], generator: torch.Generator) -> list[InnerStep]:
    """Steps over `count` synthetic images: a permutation cut into chunks of `batch`, renewed when used up (MTT)."""
    drawn, pending = [], torch.empty(0, dtype=torch.long)
    for _ in range(steps):
        if len(pending) == 0:
            pending = torch.randperm(count, generator=generator)
        index, pending = pending[:batch], pending[batch:]
        drawn.append(InnerStep(index, augmentation.draw(kinds, len(index), generator)))
    return drawn


def matching_gradient(
    derivatives: Derivatives,
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
    """Run the student from theta_start (P,) and differentiate the targets' values; none gets a gradient from later steps.

    Its optimiser goes on from the moments, or begins. Without `exact` the gradient is TESLA's. Images (S, C, H, W) may be
    tuples (S, D), with a syn_lr (M,) of as many learning rates as the rule has parts.
    """
    images, labels, syn_lr, theta_start = (x.detach() for x in (images, labels, syn_lr, theta_start))
    update = update_of(rule.optimiser, rule.momentum, moments or rest(theta_start), len(steps))
    thetas, sweeps = _forward(derivatives, images, labels, syn_lr, theta_start, steps, rule, update)
    reached = [target.reached(thetas) for target in targets]
    ended = Student(thetas[-1].clone(), update.moments)
    grad_images, grad_syn_lr = torch.zeros_like(images), torch.zeros_like(syn_lr)
    grad_labels = torch.zeros_like(labels) if labels.is_floating_point() else None
    lam, alpha = torch.zeros_like(theta_start), networks.spread(syn_lr, rule.parts)
    for t in reversed(range(max(one.step for one in reached))):
        for one in reached:
            if one.step == t + 1:
                lam = lam + one.pull
        moved = thetas[t] - thetas[t + 1]
        a = update.back(t, lam, moved, alpha)
        grad_syn_lr -= _dot(lam, moved, rule.parts) / syn_lr
        h, q, *r = _second_order(derivatives, thetas[t], images, labels, steps[t], rule, a, sweeps.pop(t, None))
        lam = lam + h if exact else lam
        grad_images += q
        if grad_labels is not None:
            grad_labels.index_add_(0, steps[t].index, r[0])
    terms, matched = torch.stack([one.value for one in reached]), tuple(one.step for one in reached)
    return MatchingGradient(terms, grad_images, grad_syn_lr, grad_labels, matched, ended)


def advanced(
    derivatives: Derivatives,
    images: Tensor,
    labels: Tensor,
    syn_lr: Tensor,
    student: Student,
    steps: Sequence[InnerStep],
    rule: InnerRule,
) -> Student:
    """The student some steps on, of which nothing is kept."""
    theta, update = student.theta, update_of(rule.optimiser, rule.momentum, student.moments, 0)
    for step in steps:
        theta, _ = _step(derivatives, images, labels, syn_lr, theta, step, rule, update)
    return Student(theta, update.moments)


def _forward(
    derivatives: Derivatives,
    images: Tensor,
    labels: Tensor,
    syn_lr: Tensor,
    theta: Tensor,
    steps: Sequence[InnerStep],
    rule: InnerRule,
    update: Update,
) -> tuple[Tensor, dict[int, Sweep]]:
    """theta_0 .. theta_N, (N + 1, P), and the sweeps of the last steps, as many as may be kept.

    One block from the start: kept one by one between a step's large temporaries, they would cut the heap into pieces that
    fit nothing, and memory would grow with the steps after all.
    """
    thetas = theta.new_zeros(len(steps) + 1, len(theta))
    thetas[0] = theta
    sweeps: dict[int, Sweep] = {}
    for t, step in enumerate(steps):
        thetas[t + 1], sweep = _step(derivatives, images, labels, syn_lr, thetas[t], step, rule, update)
        if sweep is not None and len(steps) - t <= derivatives.room(images[step.index], thetas.nbytes + update.nbytes):
            sweeps[t] = sweep
    return thetas, sweeps


def _step(
    derivatives: Derivatives,
    images: Tensor,
    labels: Tensor,
    syn_lr: Tensor,
    theta: Tensor,
    step: InnerStep,
    rule: InnerRule,
    update: Update,
) -> tuple[Tensor, Sweep | None]:
    """theta_{t+1} (P,), and the step's sweep."""
    batch = augmentation.apply(step.draw, images[step.index])
    gradient, sweep = derivatives.sweep(theta, batch, labels[step.index])
    return update.step(
        theta, rule.coefficient * gradient, rule.weight_decay * theta, networks.spread(syn_lr, rule.parts)
    ), sweep


def _dot(one: Tensor, other: Tensor, parts: tuple[int, ...]) -> Tensor:
    """The inner product (), or that of each part (M,)."""
    if not parts:
        return one.dot(other)
    return torch.stack([a.dot(b) for a, b in zip(one.split(parts), other.split(parts), strict=True)])


def _second_order(
    derivatives: Derivatives,
    theta: Tensor,
    images: Tensor,
    labels: Tensor,
    step: InnerStep,
    rule: InnerRule,
    a: Tensor,
    sweep: Sweep | None,
) -> tuple[Tensor, ...]:
    """The gradient of <grad L_t, a> with respect to theta (P,), all images (S, C, H, W), and the step's soft labels (B, K).

    The derivative with respect to the augmented batch is pulled back through the replayed augmentation.
    """
    images = images.requires_grad_()
    batch = augmentation.apply(step.draw, images[step.index])
    h, q, *r = derivatives.second(theta, batch.detach(), labels[step.index], rule.coefficient * a, sweep)
    (pulled,) = torch.autograd.grad(batch, images, grad_outputs=q)
    return h + rule.weight_decay * a, pulled, *r
