"""The evaluation protocol: fresh students, trained on the synthetic set alone. Source: MTT, section 4 (evaluation)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.func import grad, vmap

from src.ground.errors import DivergenceError
from src.ground.settings import Protocol
from src.maths import augmentation
from src.maths.derivatives import Derivatives, Logits

PASSES = 3  # work of one step in forward passes

# (thetas (G, P), batches (G, B, C, H, W), labels (G, B)) -> gradients of G students' cross-entropies (G, P)
Gradients = Callable[[Tensor, Tensor, Tensor], Tensor]


def side_by_side(loss: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Gradients:
    """All students at once by vmap: best where starting operations takes longer than their work, tiny sets and GPUs."""
    return vmap(grad(loss))


def one_by_one(
    first: Callable[[Tensor, Tensor, Tensor], Tensor], layout: torch.memory_format = torch.contiguous_format
) -> Gradients:
    """Each student's first derivative by itself, so that the others' number can't even change its rounding.

    Compiled derivatives are a tenth faster with channels last, eager ones slower.
    """

    def gradients(thetas: Tensor, batches: Tensor, labels: Tensor) -> Tensor:
        students = zip(thetas, batches, labels, strict=True)
        return torch.stack([first(theta, batch.contiguous(memory_format=layout), y) for theta, batch, y in students])

    return gradients


def train_students(
    network: Logits,
    thetas: Tensor,
    images: Tensor,
    labels: Tensor,
    syn_lr: float,
    settings: Protocol,
    generators: Sequence[torch.Generator],
    on_epoch: Callable[[], None] = lambda: None,
    gradients: Gradients | None = None,
) -> Tensor:
    """Trained parameters (G, P) of G students that start at `thetas` (G, P); `gradients` None: of `network`, all at once.

    Each student draws its batches and augmentations from its own generator, so that its result does not depend on how many
    others are trained beside it. SGD with momentum and L2 decay as torch.optim.SGD has them. Raises DivergenceError where a
    student's parameters stop being finite.
    """
    gradients = gradients or side_by_side(Derivatives(network).loss)
    momenta = torch.zeros_like(thetas)
    for epoch in range(settings.epochs):
        lr = syn_lr * (settings.lr_drop_factor if epoch > settings.epochs // 2 else 1.0)
        orders = torch.stack([torch.randperm(len(images), generator=g) for g in generators])  # (G, S)
        for index in orders.split(settings.batch_size, dim=1):
            batch = _augmented(images, index, settings, generators)
            gradient = gradients(thetas, batch, labels[index.to(labels.device)])
            momenta = settings.momentum * momenta + gradient + settings.weight_decay * thetas
            thetas = thetas - lr * momenta
        on_epoch()
    if not torch.isfinite(thetas).all():
        raise DivergenceError(
            f"students diverged in {settings.epochs} epochs with syn_lr {syn_lr:g}: lower the run's lr_init or lr_lr"
        )
    return thetas


def _augmented(images: Tensor, index: Tensor, settings: Protocol, generators: Sequence[torch.Generator]) -> Tensor:
    """Batches (G, B, C, H, W), each student's with its own draw."""
    batches = []
    for rows, generator in zip(index, generators, strict=True):
        draw = augmentation.draw(settings.augmentation, len(rows), generator).to(images.device, images.dtype)
        batches.append(augmentation.apply(draw, images[rows.to(images.device)]))
    return torch.stack(batches)
