"""The evaluation protocol: fresh students, trained on the synthetic set alone. Source: MTT, section 4 (evaluation)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.func import grad, vmap

from src.ground import runtime
from src.ground.errors import DivergenceError
from src.ground.seeding import continued
from src.ground.settings import Protocol, Runtime
from src.maths import augmentation
from src.maths.derivatives import Derivatives, Logits

PASSES = 3  # work of one step in forward passes
TOGETHER_FLOPS = 2e10  # of one student, trained in some seconds: below it, on a CPU, starting operations takes longer than they
QUICK = 5  # a first derivative compiles in a fifth of the time that the inner loop's second ones take

# (thetas (G, P), batches (G, B, C, H, W), labels (G, B)) -> gradients of G students' cross-entropies (G, P)
Gradients = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Way:
    """How students are trained. The amount of work alone decides, never a clock, so that the same bytes come again."""

    together: bool  # all at once, else each by itself
    compiled: bool
    bfloat16: bool
    flops: float  # floating-point operations of all students
    note: str  # what a user should know of the choice


@dataclass(frozen=True)
class Students:
    """What the training of G students carries from one epoch to the next. Epochs write to none of its tensors."""

    thetas: Tensor  # (G, P)
    momenta: Tensor  # (G, P)
    draws: Tensor  # (G, bytes), the states of their generators
    epochs: int = 0  # finished


def choose(asked: Runtime, device: torch.device, settings: Protocol, images: int, forward_flops: float) -> Way:
    """The way to train on so many synthetic images, of so many operations in a forward pass of one.

    Whether students train together rests on the work of one, so that its result does not depend on how many there are.
    """
    one = PASSES * settings.epochs * images * forward_flops
    flops = settings.students * one
    compiled, note = runtime.compiles(asked, QUICK * flops)
    return Way(device.type != "cpu" or one < TOGETHER_FLOPS, compiled, asked.precision == "bfloat16", flops, note)


def derivative(network: Logits, way: Way) -> Gradients:
    """The students' first derivatives in this way; channels last is a tenth faster compiled, and slower eager."""
    derivatives = Derivatives(network, way.bfloat16)
    if way.together:
        gradients = side_by_side(derivatives.loss)
        return runtime.compiled(gradients) if way.compiled else gradients
    if way.compiled:
        return one_by_one(runtime.compiled(derivatives.first), torch.channels_last)
    return one_by_one(derivatives.first)


def side_by_side(loss: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Gradients:
    """All students at once by vmap: best where starting operations takes longer than their work, tiny sets and GPUs."""
    return vmap(grad(loss))


def one_by_one(
    first: Callable[[Tensor, Tensor, Tensor], Tensor], layout: torch.memory_format = torch.contiguous_format
) -> Gradients:
    """Each student's first derivative by itself, so that the others' number can't even change its rounding."""

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
    for students in epochs(start(thetas, generators), images, labels, syn_lr, settings, gradients):
        thetas = students.thetas
        on_epoch()
    return thetas


def start(thetas: Tensor, generators: Sequence[torch.Generator]) -> Students:
    """Students before their first epoch."""
    return Students(thetas, torch.zeros_like(thetas), torch.stack([one.get_state() for one in generators]))


def epochs(
    students: Students, images: Tensor, labels: Tensor, syn_lr: float, settings: Protocol, gradients: Gradients
) -> Iterator[Students]:
    """The students after each further epoch. Raises DivergenceError where a student's parameters stop being finite."""
    for epoch in range(students.epochs, settings.epochs):
        lr = syn_lr * (settings.lr_drop_factor if epoch > settings.epochs // 2 else 1.0)
        generators = [continued(state) for state in students.draws]
        thetas, momenta = students.thetas, students.momenta
        orders = torch.stack([torch.randperm(len(images), generator=g) for g in generators])  # (G, S)
        for index in orders.split(settings.batch_size, dim=1):
            batch = _augmented(images, index, settings, generators)
            gradient = gradients(thetas, batch, labels[index.to(labels.device)])
            momenta = settings.momentum * momenta + gradient + settings.weight_decay * thetas
            thetas = thetas - lr * momenta
        if not torch.isfinite(thetas).all():
            raise DivergenceError(
                f"students diverged in epoch {epoch + 1} with syn_lr {syn_lr:g}: lower the run's lr_init or lr_lr"
            )
        students = Students(thetas, momenta, torch.stack([one.get_state() for one in generators]), epoch + 1)
        yield students


def _augmented(images: Tensor, index: Tensor, settings: Protocol, generators: Sequence[torch.Generator]) -> Tensor:
    """Batches (G, B, C, H, W), each student's with its own draw."""
    batches = []
    for rows, generator in zip(index, generators, strict=True):
        draw = augmentation.draw(settings.augmentation, len(rows), generator).to(images.device, images.dtype)
        batches.append(augmentation.apply(draw, images[rows.to(images.device)]))
    return torch.stack(batches)
