"""The outer loop: one iteration moves the synthetic images, syn_lr and learned labels down the gradient of the student's loss.

Where the task is tuples, these stand for the images, as rows (S, D) of all modalities' numbers; syn_lr is one learning rate a
modality, and the labels are their places, or what is learned of their similarity.

Sources: MTT, algorithm 1; AST, section 3 for its parts; FTD for the running mean; TESLA and DATM for the labels; RaT-BPTT for
the loss on real images; LoRS for the similarity.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from src.ground.errors import DivergenceError
from src.maths import inner_loop, matching
from src.maths.derivatives import Derivatives
from src.maths.inner_loop import InnerRule, InnerStep, MatchingGradient, Student
from src.maths.inner_updates import ADAM_BETAS, ADAM_EPS, Moments, rest
from src.maths.networks import FlatNetwork
from src.maths.targets import base as targets
from src.maths.targets.base import Course
from src.settings.distillation import Distillation

# beyond these a run is lost, though its numbers are finite
LOSS_LIMIT = 1e3  # the student ends some thirty times as far off as the expert went
IMAGE_LIMIT = 1e4  # what networks read has a standard deviation of about 1


@dataclass(frozen=True)
class State:
    """What the outer loop carries from one iteration to the next; None of what the settings do not ask for."""

    images: Tensor  # (S, C, H, W), or tuples (S, D)
    syn_lr: Tensor  # (), of tuples (M,)
    images_velocity: Tensor  # (S, C, H, W), outer momentum, or Adam's mean gradient
    syn_lr_velocity: Tensor  # ()
    images_square: Tensor | None = None  # (S, C, H, W), Adam's mean squared gradient
    syn_lr_square: Tensor | None = None  # ()
    logits: Tensor | None = None  # (S, K), whose softmax are the labels, learned or the last expert's
    logits_velocity: Tensor | None = None  # (S, K)
    logits_square: Tensor | None = None  # (S, K)
    images_mean: Tensor | None = None  # (S, C, H, W), over iterations
    labels_mean: Tensor | None = None  # (S, K), of probabilities
    students: Tensor | None = None  # (n, P), of the objective real
    students_moments: Tensor | None = None  # (n, 2, P), of their optimisers
    students_steps: Tensor | None = None  # (n,), that they have taken
    similarity: Tensor | None = None  # (S, q), of tuples
    similarity_velocity: Tensor | None = None  # (S, q)
    similarity_square: Tensor | None = None  # (S, q)

    @property
    def labels(self) -> Tensor | None:
        """(S, K) as students learn them; None where they are as they were given."""
        return self.similarity if self.logits is None else self.logits.softmax(1)

    @property
    def scored(self) -> tuple[Tensor, Tensor | None]:
        """Images and soft labels that are kept: their running means where the settings ask for these."""
        labels = self.labels if self.labels_mean is None else self.labels_mean
        return self.images if self.images_mean is None else self.images_mean, labels


@dataclass(frozen=True)
class Start:
    """Where a student starts and what it is to follow: theta*_s .. theta*_{s+M}, (M + 1, P), and s."""

    snapshots: Tensor
    epoch: int


@dataclass(frozen=True)
class Real:
    """What the loss on real images is taken of."""

    images: Tensor  # (N, C, H, W), as networks read them
    labels: Tensor  # (N,)
    fresh: Callable[[torch.Generator], Tensor]  # parameters (P,) of a student that has learned nothing


@dataclass(frozen=True)
class Figures:
    """What one iteration measured, at the synthetic set it started from."""

    terms: list[float]  # one for each target, weights included: way points, the end point last, then real images
    syn_lr: float
    grad_norm_images: float
    grad_norm_syn_lr: float
    steps: tuple[float, ...] = ()  # at which each target was reached, the mean over the trajectories
    rates: tuple[float, ...] = ()  # of tuples: syn_lr of each modality, whose mean is the one above

    @property
    def matching_loss(self) -> float:
        return sum(self.terms)


def start(
    images: Tensor,
    settings: Distillation,
    logits: Tensor | None = None,
    syn_lr: float | Sequence[float] | None = None,
    similarity: Tensor | None = None,
) -> State:
    """The state before the first iteration.

    `logits` (S, K) are those that learned labels start from, `similarity` (S, q) what is learned of tuples beside these;
    `syn_lr` goes before lr_init: the initial run's, or that of each modality.
    """
    first = settings.lr_init if syn_lr is None else syn_lr
    rate = torch.tensor(first, dtype=images.dtype, device=images.device)
    learned = {"logits": logits, "similarity": similarity}
    moving = {name: value for name, value in learned.items() if value is not None}
    state = State(images, rate, torch.zeros_like(images), torch.zeros_like(rate), **moving)
    state = replace(state, **{f"{name}_velocity": torch.zeros_like(value) for name, value in moving.items()})
    if settings.outer_optimiser == "adam":
        squares = {"images": images, "syn_lr": rate, **moving}
        state = replace(state, **{f"{name}_square": torch.zeros_like(value) for name, value in squares.items()})
    return state if settings.ema is None else replace(state, images_mean=images, labels_mean=state.labels)


def start_bound(iteration: int, settings: Distillation) -> int:
    """The start epochs of an iteration lie below this: max_start_epoch, to which the bound may have to grow (DATM)."""
    growth = settings.start_growth
    if growth is None or iteration >= growth.iterations:
        return settings.max_start_epoch
    return growth.max_start_epoch + (settings.max_start_epoch - growth.max_start_epoch) * iteration // growth.iterations


def draw_start(experts: int, settings: Distillation, generator: torch.Generator, iteration: int = 0) -> tuple[int, int]:
    """An expert and a start epoch s in the iteration's window, both uniform."""
    expert = int(torch.randint(experts, (), generator=generator))
    bound = start_bound(iteration, settings)
    return expert, int(torch.randint(settings.min_start_epoch, bound, (), generator=generator))


def iterate(
    network: FlatNetwork,
    derivatives: Derivatives,
    state: State,
    labels: Tensor,
    starts: Sequence[Start],
    settings: Distillation,
    generator: torch.Generator,
    iteration: int = 0,
    real: Real | None = None,
    columns: Tensor | None = None,
) -> tuple[State, Figures]:
    """One iteration against one or several expert trajectories, whose gradients are averaged; of objective real against none.

    `labels` are those given with the images, (S,) or (S, K). `columns` (D,) are learning rates of tuples' numbers as shares of
    lr_img. Raises DivergenceError, leaving `state` good.
    """
    state, gradients = differentiated(network, derivatives, state, labels, starts, settings, generator, real)
    gradient = mean(gradients)
    figures = Figures(
        gradient.terms.tolist(),
        state.syn_lr.mean().item(),
        gradient.images.norm().item(),
        gradient.syn_lr.abs().max().item(),
        tuple(sum(steps) / len(steps) for steps in zip(*(one.steps for one in gradients), strict=True)),
        tuple(state.syn_lr.tolist()) if state.syn_lr.dim() else (),
    )
    new = _averaged(_descend(state, gradient, settings, iteration, columns), settings)
    _check(figures, new, settings)
    return new, figures


def differentiated(
    network: FlatNetwork,
    derivatives: Derivatives,
    state: State,
    labels: Tensor,
    starts: Sequence[Start],
    settings: Distillation,
    generator: torch.Generator,
    real: Real | None = None,
) -> tuple[State, list[MatchingGradient]]:
    """The gradients of an iteration, and the state with what students and experts leave there; arguments as of `iterate`."""
    if settings.objective == "real":
        assert real is not None
        state, found = _learn(network, derivatives, state, labels, settings, generator, real)
        return state, [found]
    seen = [labels if state.labels is None else state.labels] * len(starts)
    if settings.labels == "expert":
        told = [_told(network, start, state.images) for start in starts]
        state, seen = replace(state, logits=torch.stack(told).mean(dim=0)), [one.softmax(1) for one in told]
    pairs = zip(starts, seen, strict=True)
    return state, [_match(network, derivatives, state, own, start, settings, generator, real) for start, own in pairs]


def mean(gradients: Sequence[MatchingGradient]) -> MatchingGradient:
    """That of an iteration against several trajectories."""
    labels = [one.labels for one in gradients if one.labels is not None]
    return MatchingGradient(
        terms=torch.stack([one.terms for one in gradients]).mean(dim=0),
        images=torch.stack([one.images for one in gradients]).mean(dim=0),
        syn_lr=torch.stack([one.syn_lr for one in gradients]).mean(dim=0),
        labels=torch.stack(labels).mean(dim=0) if labels else None,
    )


def _told(network: FlatNetwork, start: Start, images: Tensor) -> Tensor:
    """The target expert's logits of the images, (S, K)."""
    with torch.no_grad():
        return network(start.snapshots[-1], images)


def _match(
    network: FlatNetwork,
    derivatives: Derivatives,
    state: State,
    labels: Tensor,
    start: Start,
    settings: Distillation,
    generator: torch.Generator,
    real: Real | None,
) -> MatchingGradient:
    """The gradient of the loss against one trajectory."""
    theta_start = matching.perturb(start.snapshots[0], network.convolutions, settings.weight_perturbation, generator)
    steps = _steps(len(labels), settings.syn_steps, settings, generator, state.images)
    batch = None if real is None else _real_batch(real, settings, generator)
    first = sum(network.sizes[: int(settings.unmatched_depth * len(network.sizes))])
    course = Course(theta_start, start.snapshots[1:], first, derivatives, batch, settings, network.parts)
    return inner_loop.matching_gradient(
        derivatives,
        state.images,
        labels,
        state.syn_lr,
        theta_start,
        steps,
        targets.made(settings.targets, course),
        _rule(settings, matching.balance(start.epoch, settings), network.parts),
        exact=settings.gradient == "exact",
    )


def _learn(
    network: FlatNetwork,
    derivatives: Derivatives,
    state: State,
    labels: Tensor,
    settings: Distillation,
    generator: torch.Generator,
    real: Real,
) -> tuple[State, MatchingGradient]:
    """The gradient of the loss on real images of one of the students, who then is as many steps further in the state.

    Its first steps, so many as are skipped, are taken for given. Where the learning rate is dropped for those that are
    differentiated, it goes on from before them.
    """
    assert settings.real is not None
    like, labels, rule = state.images, labels if state.labels is None else state.labels, _rule(settings, 1.0)
    chosen = int(torch.randint(settings.real.students, (), generator=generator))
    skipped = int(torch.randint(settings.real.max_skip + 1, (), generator=generator))
    students = _students(network, state, settings.real.students)
    student = _student(students, chosen)
    if not 0 < student.moments.steps < settings.real.max_age:
        theta = real.fresh(generator).to(like)
        student = Student(theta, rest(theta))
    of, drop = (derivatives, state.images, labels), settings.real.lr_drop_factor
    student = inner_loop.advanced(*of, state.syn_lr, student, _steps(len(labels), skipped, settings, generator, like), rule)
    steps = _steps(len(labels), settings.syn_steps, settings, generator, like)
    batch = _real_batch(real, settings, generator)
    course = Course(student.theta, student.theta.new_empty(0), 0, derivatives, batch, settings)
    goals, exact = targets.made(settings.targets, course), settings.gradient == "exact"
    rate = drop * state.syn_lr
    found = inner_loop.matching_gradient(*of, rate, student.theta, steps, goals, rule, student.moments, exact)
    assert found.ended is not None
    student = found.ended if drop == 1 else student
    return _kept(state, students, chosen, student), replace(found, syn_lr=drop * found.syn_lr)


def _rule(settings: Distillation, coefficient: float, parts: tuple[int, ...] = ()) -> InnerRule:
    return InnerRule(settings.inner_momentum, settings.inner_weight_decay, coefficient, settings.inner_optimiser, parts)


def _steps(count: int, steps: int, settings: Distillation, generator: torch.Generator, like: Tensor) -> list[InnerStep]:
    batch = settings.batch_syn or count
    drawn = inner_loop.draw_steps(count, steps, batch, settings.augmentation, generator)
    return [InnerStep(step.index.to(like.device, non_blocking=True), step.draw.to(like.device, like.dtype)) for step in drawn]


def _real_batch(real: Real, settings: Distillation, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Images (R, C, H, W) and labels (R,) of the iteration, all of them where they are no more than asked for."""
    assert settings.real is not None
    index = torch.randperm(len(real.labels), generator=generator)[: settings.real.images]
    index = index.to(real.labels.device, non_blocking=True)
    return real.images[index], real.labels[index]


Students = tuple[Tensor, Tensor, Tensor]  # thetas (n, P), moments (n, 2, P), steps taken (n,), 0 of one who is yet to begin


def _students(network: FlatNetwork, state: State, count: int) -> Students:
    if state.students is not None and state.students_moments is not None and state.students_steps is not None:
        return state.students, state.students_moments, state.students_steps
    empty = state.images.new_zeros(count, network.dimension)
    return empty, empty.new_zeros(count, 2, network.dimension), torch.zeros(count, dtype=torch.long)


def _student(students: Students, number: int) -> Student:
    thetas, moments, steps = students
    first, second = moments[number]
    return Student(thetas[number], Moments(first, second, int(steps[number])))


def _kept(state: State, students: Students, number: int, student: Student) -> State:
    """The state with the student in place of what it was: a new one, as states are never written to."""
    thetas, moments, steps = (one.clone() for one in students)
    thetas[number], steps[number] = student.theta, student.moments.steps
    moments[number] = torch.stack((student.moments.first, student.moments.second))
    return replace(state, students=thetas, students_moments=moments, students_steps=steps)


def _descend(state: State, gradient: MatchingGradient, settings: Distillation, iteration: int, columns: Tensor | None) -> State:
    """SGD with momentum or Adam, as torch.optim has them; syn_lr stops at its lower bound."""
    own, momentum = (settings, iteration), settings.outer_momentum
    of_images, of_rate = (state.images_velocity, state.images_square), (state.syn_lr_velocity, state.syn_lr_square)
    lr_img = settings.lr_img if columns is None else settings.lr_img * columns
    images = _moved(state.images, gradient.images, of_images, lr_img, momentum, *own)
    rate = _moved(state.syn_lr, gradient.syn_lr, of_rate, settings.lr_lr, momentum, *own)
    new = replace(
        state,
        images=images[0],
        syn_lr=rate[0].clamp_min(settings.syn_lr_min),
        images_velocity=images[1],
        syn_lr_velocity=rate[1],
        images_square=images[2],
        syn_lr_square=rate[2],
    )
    if settings.similarity is not None:
        return _with_similarity(new, state, gradient, settings, iteration)
    if settings.labels != "learned":
        return new
    p, g = state.labels, gradient.labels
    assert state.logits is not None and state.logits_velocity is not None and p is not None and g is not None
    through = p * (g - (p * g).sum(1, keepdim=True))  # of the softmax
    kept = (state.logits_velocity, state.logits_square)
    logits = _moved(state.logits, through, kept, settings.lr_label, settings.label_momentum, *own)
    return replace(new, logits=logits[0], logits_velocity=logits[1], logits_square=logits[2])


def _with_similarity(new: State, state: State, gradient: MatchingGradient, settings: Distillation, iteration: int) -> State:
    """The new state with the similarity of tuples, whose momentum is that of the images (LoRS)."""
    assert settings.similarity is not None
    assert state.similarity is not None and state.similarity_velocity is not None and gradient.labels is not None
    kept = (state.similarity_velocity, state.similarity_square)
    lr, momentum = settings.similarity.lr, settings.outer_momentum
    found = _moved(state.similarity, gradient.labels, kept, lr, momentum, settings, iteration)
    return replace(new, similarity=found[0], similarity_velocity=found[1], similarity_square=found[2])


def _moved(
    value: Tensor,
    gradient: Tensor,
    kept: tuple[Tensor, Tensor | None],
    lr: float | Tensor,
    momentum: float,
    settings: Distillation,
    iteration: int,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """The value a step of the outer optimiser further, and what that keeps: velocity, and Adam's square."""
    velocity, square = kept
    if settings.outer_optimiser == "sgd":
        velocity = momentum * velocity + gradient
        return value - lr * velocity, velocity, None
    assert square is not None
    (b1, b2), number = ADAM_BETAS, iteration + 1
    velocity = b1 * velocity + (1 - b1) * gradient
    square = b2 * square + (1 - b2) * gradient.square()
    scale = (square / (1 - b2**number)).sqrt() + ADAM_EPS
    return value - lr / (1 - b1**number) * velocity / scale, velocity, square


def _averaged(state: State, settings: Distillation) -> State:
    """With the running means: decay * mean + (1 - decay) * what the iteration has come to."""
    if settings.ema is None or state.images_mean is None:
        return state
    images = settings.ema * state.images_mean + (1 - settings.ema) * state.images
    labels, mean = state.labels, state.labels_mean
    if labels is not None and mean is not None:
        labels = settings.ema * mean + (1 - settings.ema) * labels
    return replace(state, images_mean=images, labels_mean=labels)


def _check(figures: Figures, new: State, settings: Distillation) -> None:
    """Raises DivergenceError where a number is not finite, or beyond all sense."""
    gradients = torch.tensor([figures.grad_norm_images, figures.grad_norm_syn_lr])
    largest = new.images.abs().max().item()
    watched = [gradients, new.images, new.syn_lr, *(one for one in (new.logits, new.similarity) if one is not None)]
    finite = all(torch.isfinite(values).all() for values in watched)
    if finite and figures.matching_loss <= LOSS_LIMIT and largest <= IMAGE_LIMIT:
        return
    lost = not figures.matching_loss <= LOSS_LIMIT
    cause = "the student diverged in the inner loop" if lost else "the images', syn_lr's or labels' last step was too large"
    begun = "null" if settings.lr_init is None else f"{settings.lr_init:g}"
    raise DivergenceError(
        f"{cause}: {settings.loss} {figures.matching_loss:g}, gradient norm {figures.grad_norm_images:g} (images) and "
        f"{figures.grad_norm_syn_lr:g} (syn_lr), largest value of the new images {largest:g} at syn_lr {figures.syn_lr:g}: "
        f"lower lr_img ({settings.lr_img:g}), lr_lr ({settings.lr_lr:g}) or lr_init ({begun}), "
        f"or shorten syn_steps ({settings.syn_steps})"
    )
