"""The evaluation protocol: fresh students, trained on the synthetic set alone. Source: MTT, section 4 (evaluation)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import grad, vmap

from src.ground.errors import DivergenceError
from src.ground.settings import Protocol
from src.maths import augmentation


def train_students(
    network: Callable[[Tensor, Tensor], Tensor],
    thetas: Tensor,
    images: Tensor,
    labels: Tensor,
    syn_lr: float,
    settings: Protocol,
    generators: Sequence[torch.Generator],
    on_epoch: Callable[[], None] = lambda: None,
) -> Tensor:
    """Trained parameters (G, P) of G students that start at `thetas` (G, P), all at once.

    Each student draws its batches and augmentations from its own generator, so that its result does not depend on how many
    others are trained beside it. SGD with momentum and L2 decay as torch.optim.SGD has them. Raises DivergenceError where a
    student's parameters stop being finite.
    """

    def loss(theta: Tensor, batch: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(network(theta, batch), targets)

    gradients = vmap(grad(loss))
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
