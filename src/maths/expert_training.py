"""Training of one expert on the real training split: the trajectory that students are to follow. Source: AST, parts 1 and 2."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from src.ground.errors import DivergenceError
from src.ground.seeding import continued
from src.maths import augmentation, derivatives, networks, smoothness
from src.maths.augmentation import Draw
from src.maths.by_hand import ByHand
from src.maths.derivatives import Backend, Loss
from src.maths.networks import FlatNetwork
from src.settings.experts import Experts

CHUNK = 64  # images differentiated at once on a CPU: they take a quarter of a usual batch's memory, and caches like them
LOSS_LIMIT = 1e3  # mean cross-entropy of an epoch: a network that knows nothing has log K
ADAM_BETAS, ADAM_EPS = (0.9, 0.999), 1e-8
PASSES, PENALTY_PASSES = 3, 9  # work of one step in forward passes: of the cross-entropy, and of the gradient penalty

# (theta (P,), augmented and plain images (B, C, H, W), labels (B,), coefficient of the cross-entropy ())
# -> gradient of coefficient * cross-entropy + lambda * penalty (P,), cross-entropy (), penalty ()
Gradient = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]


@dataclass(frozen=True)
class State:
    """What the training of one expert carries from one step to the next. Steps write to none of its tensors."""

    theta: Tensor  # (P,)
    moments: Tensor  # (2, P), running means of the gradient (SGD: the velocity) and, for Adam, of its square
    draws: Tensor  # the generator's state, bytes
    pending: Tensor  # (n,), the images that the running epoch has still to see, in this order
    figures: Tensor  # (steps, 2), cross-entropy and penalty of the epoch's steps so far
    epochs: int = 0  # finished
    steps: int = 0  # taken, of all epochs

    @property
    def between_epochs(self) -> bool:
        return len(self.pending) == 0


@dataclass(frozen=True)
class Epoch:
    """The expert after `number` epochs (0 is the initialisation)."""

    number: int
    theta: Tensor  # (P,)
    train_loss: float  # mean cross-entropy of the epoch's augmented batches, nan at 0
    penalty: float  # mean gradient penalty of the epoch, 0 where it is off


def start(network: nn.Module, generator: torch.Generator) -> State:
    """The state before the first step, at the parameters of `network`."""
    theta = networks.flatten(network)
    moments, figures = theta.new_zeros(2, len(theta)), theta.new_empty(0, 2)
    return State(theta, moments, generator.get_state(), torch.empty(0, dtype=torch.long), figures)


def steps(
    state: State, images: Tensor, labels: Tensor, settings: Experts, gradient: Gradient, chunk: int | None = None
) -> Iterator[State]:
    """The state after each further step on images (N, C, H, W) and labels (N,), until the last epoch has ended.

    `gradient` is `differentiate`'s, compiled or not; it sees `chunk` images at once (None: a whole batch). Raises
    DivergenceError as soon as an epoch's loss or parameters are not finite, or absurd.
    """
    while state.epochs < settings.last_epoch:
        state = _step(state, images, labels, settings, gradient, chunk)
        if state.between_epochs:
            check(state, settings)
        yield state


def epoch_of(state: State) -> Epoch:
    """The epoch that has just ended."""
    if state.epochs == 0:
        return Epoch(0, state.theta, float("nan"), 0.0)
    loss, penalty = state.figures.mean(dim=0).tolist()
    return Epoch(state.epochs, state.theta, loss, penalty)


def train(
    network: nn.Module,
    images: Tensor,
    labels: Tensor,
    settings: Experts,
    generator: torch.Generator,
    gradient: Gradient | None = None,
    chunk: int | None = None,
) -> Iterator[Epoch]:
    """Train from the parameters of `network`: the initialisation, then each epoch. The rest is as `steps` has it.

    `gradient` None: of this network, eager, in its own precision.
    """
    gradient = gradient or differentiate(FlatNetwork(network), settings)
    first = start(network, generator)
    yield epoch_of(first)
    for state in steps(first, images, labels, settings, gradient, chunk):
        if state.between_epochs:
            yield epoch_of(state)


def check(state: State, settings: Experts) -> None:
    """Raises DivergenceError unless the parameters and the running epoch's figures are finite and make sense."""
    loss, penalty = state.figures.mean(dim=0).tolist()
    if not (torch.isfinite(state.theta).all() and math.isfinite(penalty) and loss <= LOSS_LIMIT):
        raise DivergenceError(
            f"the expert diverged in epoch {state.epochs if state.between_epochs else state.epochs + 1} "
            f"(train loss {loss}, gradient penalty {penalty}, lr {settings.lr}): lower the experts' lr, "
            f"or their gradient_penalty ({settings.gradient_penalty})"
        )


def _step(state: State, images: Tensor, labels: Tensor, settings: Experts, gradient: Gradient, chunk: int | None) -> State:
    """One step on the next batch of the epoch's order."""
    drawn = draw(state, len(images), settings)
    batch = batch_of(drawn, images, labels)
    coefficient = on(state.theta, smoothness.clipping_coefficient(state.epochs, settings))
    size = chunk or len(drawn.index)
    found, losses = _by_chunks(gradient, state.theta, batch, coefficient, size)
    if settings.sharpness:
        found, _ = _by_chunks(gradient, uphill(state.theta, found, settings), batch, coefficient, size)
    return after(state, drawn, found, losses, settings)


def on(theta: Tensor, numbers: float | Sequence[float]) -> Tensor:
    """Numbers beside the parameters; the host does not wait for them to arrive."""
    return torch.tensor(numbers, dtype=theta.dtype).to(theta.device, non_blocking=True)


def uphill(theta: Tensor, gradient: Tensor, settings: Experts) -> Tensor:
    """Where a sharpness-aware step takes its gradient: theta + rho g / ||g||, over the last dimension."""
    length: Tensor = gradient.norm(dim=-1, keepdim=True).clamp_min(torch.finfo(gradient.dtype).tiny)
    return theta + settings.sharpness / length * gradient


@dataclass(frozen=True)
class Drawn:
    """What is random in one step, on the CPU."""

    index: Tensor  # (B,), the step's images
    pending: Tensor  # (n,), those that the epoch has still to see
    draw: Draw
    draws: Tensor  # the generator's state afterwards, bytes
    begins: bool  # whether the epoch begins


def draw(state: State, images: int, settings: Experts) -> Drawn:
    """The next batch of the epoch's order over so many images; a new order is drawn where the last one is used up."""
    generator, pending = continued(state.draws), state.pending
    if state.between_epochs:
        pending = torch.randperm(images, generator=generator)
    index, pending = pending[: settings.batch_size], pending[settings.batch_size :]
    drawn = augmentation.draw(settings.augmentation, len(index), generator)
    return Drawn(index, pending, drawn, generator.get_state(), state.between_epochs)


def batch_of(drawn: Drawn, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The step's augmented and plain images (B, C, H, W) and labels (B,), on the images' device."""
    index = drawn.index.to(images.device, non_blocking=True)
    plain = images[index]
    return augmentation.apply(drawn.draw.to(images.device, images.dtype), plain), plain, labels[index]


def after(state: State, drawn: Drawn, gradient: Tensor, losses: Tensor, settings: Experts) -> State:
    """The state after a step with this gradient (P,), cross-entropy and penalty (2,)."""
    theta, moments = _descend(state, gradient, settings)
    figures = torch.cat((state.figures[:0] if drawn.begins else state.figures, losses[None]))
    epochs = state.epochs + (len(drawn.pending) == 0)
    return State(theta, moments, drawn.draws, drawn.pending, figures, epochs, state.steps + 1)


def _descend(state: State, gradient: Tensor, settings: Experts) -> tuple[Tensor, Tensor]:
    """New theta (P,) and moments (2, P), as torch.optim's SGD or Adam have them."""
    lr = settings.lr * settings.lr_drop_factor if state.epochs > settings.epochs // 2 else settings.lr
    gradient = gradient.add(state.theta, alpha=settings.weight_decay)
    first, second = state.moments
    if settings.optimiser == "sgd":
        velocity = settings.momentum * first + gradient
        return state.theta.add(velocity, alpha=-lr), torch.stack((velocity, second))
    (beta, beta_square), step = ADAM_BETAS, state.steps + 1
    first = beta * first + (1 - beta) * gradient
    second = beta_square * second + (1 - beta_square) * gradient.square()
    scale = (second / (1 - beta_square**step)).sqrt() + ADAM_EPS
    return state.theta - lr / (1 - beta**step) * first / scale, torch.stack((first, second))


def differentiate(
    network: FlatNetwork,
    settings: Experts,
    bfloat16: bool = False,
    backend: Backend = "eager",
    task_loss: Loss = F.cross_entropy,
) -> Gradient:
    """The derivative of one step's loss; `task_loss` is what stands for the cross-entropy where classes are not the task.

    With `bfloat16`, convolutions and matrix products run in it; theta, losses and gradients keep their precision.
    """
    if backend in ("kernels", "fused"):
        return derivatives.built(by_hand(ByHand(network, bfloat16), settings), backend)
    return derivatives.built(_by_autograd(network, settings, bfloat16, task_loss), backend)


def by_hand(network: ByHand, settings: Experts) -> Gradient:
    """The penalty's gradient is that of <u, c>, with u what it looks at and c its gradient to u, held constant."""

    def gradient(
        theta: Tensor, augmented: Tensor, plain: Tensor, labels: Tensor, coefficient: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        found, sweep = network.sweep(theta, augmented, labels)
        found, loss = coefficient * found, F.cross_entropy(sweep.logits, labels)
        del sweep
        if not settings.gradient_penalty:
            return found, loss, torch.zeros_like(loss)
        of = settings.gradient_penalty_of
        u, sweep = network.of_inputs(theta, plain, labels, of)
        penalty, of_u = smoothness.penalty_of(u, settings.gradient_penalty_axes)
        return found + settings.gradient_penalty * network.along_inputs(theta, of_u, sweep, labels, of), loss, penalty

    return gradient


def _by_autograd(network: FlatNetwork, settings: Experts, bfloat16: bool, task_loss: Loss) -> Gradient:
    """A pure function that compiles."""

    def gradient(
        theta: Tensor, augmented: Tensor, plain: Tensor, labels: Tensor, coefficient: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        theta = theta.detach().requires_grad_()

        def logits(batch: Tensor) -> Tensor:
            with torch.autocast(theta.device.type, torch.bfloat16, enabled=bfloat16):
                found = network(theta, batch)
            return found.to(theta.dtype)

        loss = task_loss(logits(augmented), labels)
        penalty = torch.zeros_like(loss)
        if settings.gradient_penalty:
            penalty = smoothness.gradient_penalty(logits, plain, labels, settings)
        (found,) = torch.autograd.grad(coefficient * loss + settings.gradient_penalty * penalty, theta)
        return found, loss.detach(), penalty.detach()

    return gradient


def passes(settings: Experts, images: int) -> int:
    """Work of training one expert on so many images, in forward passes of one image."""
    step = PASSES + (PENALTY_PASSES if settings.gradient_penalty else 0)
    return settings.last_epoch * images * step * (2 if settings.sharpness else 1)


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
