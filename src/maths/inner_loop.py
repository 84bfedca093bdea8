"""The inner loop: student training on the synthetic set, and the exact gradient of the matching loss through all of it.

The student takes N steps of SGD with momentum mu and learning rate alpha (syn_lr) on the loss L_t of step t:

    g_t = grad L_t(theta_t);   m_{t+1} = mu * m_t + g_t;   theta_{t+1} = theta_t - alpha * m_{t+1}

and the matching loss is the sum over way points k of beta_k * ||theta_{n_k} - theta*_k||^2 / D_k (MTT eq. 2, AST section 3).
Instead of keeping the graph of all N steps, the recursion is reversed. With lam the adjoint of theta_{t+1}, a that of
m_{t+1} and nu what step t + 1 passed back to m_{t+1}, from lam = nu = 0, for t = N - 1 .. 0:

    lam += 2 * beta_k * (theta_{t+1} - theta*_k) / D_k     if n_k = t + 1
    a    = nu - alpha * lam
    dL/dalpha -= <lam, m_{t+1}>                            with m_{t+1} = (theta_t - theta_{t+1}) / alpha
    (h, q) = gradient of <grad L_t(theta, X), a> with respect to (theta, X) at theta_t, a held constant
    lam += h;   dL/dX += q;   nu = mu * a

It is exact, Hessian terms included, and keeps P numbers a step: the graph of one step lives at a time. Where memory may be
taken for it, the last steps also keep their sweep, what the first derivative found on its way: it saves the second one a
quarter of its work and changes no bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from src.maths import augmentation
from src.maths.augmentation import Draw
from src.maths.by_hand import Sweep
from src.maths.derivatives import Derivatives
from src.maths.matching import WayPoint


@dataclass(frozen=True)
class InnerStep:
    """What is random in one student step, drawn before it: which synthetic images, and their augmentation."""

    index: Tensor  # (B,) into the S synthetic images
    draw: Draw


@dataclass(frozen=True)
class InnerRule:
    """The student's update: momentum mu, L2 decay, and the coefficient of the balanced loss. L_t has all of them."""

    momentum: float
    weight_decay: float
    coefficient: float


@dataclass(frozen=True)
class MatchingGradient:
    """The matching loss and its gradient."""

    terms: Tensor  # (M,) one for each way point, weights included; their sum is the loss
    images: Tensor  # (S, C, H, W)
    syn_lr: Tensor  # ()
    labels: Tensor | None  # (S, K) where labels are probabilities


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
    way_points: Sequence[WayPoint],
    rule: InnerRule,
) -> MatchingGradient:
    """Run the student from theta_start (P,) and differentiate its distance to the way points; the last ends the loop."""
    images, labels, syn_lr, theta_start = (x.detach() for x in (images, labels, syn_lr, theta_start))
    thetas, sweeps = _forward(derivatives, images, labels, syn_lr, theta_start, steps, rule)
    terms = torch.stack([point.distance(thetas[point.step]) for point in way_points])
    pulls = {point.step: point.pull(thetas[point.step]) for point in way_points}
    grad_images, grad_syn_lr = torch.zeros_like(images), torch.zeros_like(syn_lr)
    grad_labels = torch.zeros_like(labels) if labels.is_floating_point() else None
    lam, nu = torch.zeros_like(theta_start), torch.zeros_like(theta_start)
    for t in reversed(range(len(steps))):
        if t + 1 in pulls:
            lam = lam + pulls[t + 1]
        a = nu - syn_lr * lam
        grad_syn_lr -= lam.dot(thetas[t] - thetas[t + 1]) / syn_lr
        h, q, *r = _second_order(derivatives, thetas[t], images, labels, steps[t], rule, a, sweeps.pop(t, None))
        lam, nu = lam + h, rule.momentum * a
        grad_images += q
        if grad_labels is not None:
            grad_labels.index_add_(0, steps[t].index, r[0])
    return MatchingGradient(terms, grad_images, grad_syn_lr, grad_labels)


def _forward(
    derivatives: Derivatives,
    images: Tensor,
    labels: Tensor,
    syn_lr: Tensor,
    theta: Tensor,
    steps: Sequence[InnerStep],
    rule: InnerRule,
) -> tuple[Tensor, dict[int, Sweep]]:
    """theta_0 .. theta_N, (N + 1, P), and the sweeps of the last steps, as many as may be kept.

    One block from the start: kept one by one between a step's large temporaries, they would cut the heap into pieces that
    fit nothing, and memory would grow with the steps after all.
    """
    thetas, momentum = theta.new_zeros(len(steps) + 1, len(theta)), torch.zeros_like(theta)
    thetas[0] = theta
    sweeps: dict[int, Sweep] = {}
    for t, step in enumerate(steps):
        batch = augmentation.apply(step.draw, images[step.index])
        gradient, sweep = derivatives.sweep(thetas[t], batch, labels[step.index])
        if sweep is not None and len(steps) - t <= derivatives.room(batch):
            sweeps[t] = sweep
        momentum = rule.momentum * momentum + rule.coefficient * gradient + rule.weight_decay * thetas[t]
        thetas[t + 1] = thetas[t] - syn_lr * momentum
    return thetas, sweeps


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
