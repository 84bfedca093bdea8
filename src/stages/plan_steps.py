"""Measured steps of the stages of one run, on noise: how long a step takes does not depend on what the images show.

Every choice is the stages' own: compiled or not, in how many processes, students together or one by one.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from statistics import median

import torch
from torch import Tensor, nn

from src.ground import runtime
from src.loops import outer
from src.maths import augmentation, expert_training, inner_loop, networks, protocol
from src.maths.derivatives import PASSES, Backend, Derivatives, choose
from src.maths.inner_loop import InnerRule, InnerStep
from src.maths.networks import FlatNetwork
from src.maths.protocol import ModuleStudent, Way
from src.maths.targets.real import RealLoss
from src.maths.targets.snapshots import WayPoint
from src.process import progress, workers
from src.process.progress import Advance
from src.settings.distillation import Distillation
from src.settings.experts import Experts
from src.settings.networks import Network
from src.settings.protocols import Protocol
from src.settings.resolved import Run
from src.settings.runtime import Runtime
from src.store import cost
from src.store.values import Statistics

TIMED_STEPS = 2  # after some that warm up and compile
MEASUREMENTS = 5
MEASURED = 64  # images of a step that a rate is taken from
LR = 1e-6  # low enough for training on noise not to diverge


@dataclass(frozen=True)
class Subject:
    """A run on its data set."""

    run: Run
    statistics: Statistics
    device: torch.device

    @property
    def name(self) -> str:
        return self.run.name

    @property
    def distil(self) -> Distillation:
        return self.run.distillation

    @property
    def experts(self) -> Experts | None:
        """Of a baseline none."""
        return None if self.run.buffer is None else self.run.buffer.settings

    @property
    def evaluate(self) -> Protocol:
        return self.run.evaluation

    @property
    def spec(self) -> Network:
        return self.run.spec

    @property
    def cross(self) -> tuple[Network, ...]:
        return tuple(self.run.cross.values())

    @property
    def real(self) -> int:
        """Training images."""
        return sum(self.statistics.counts["train"].values())

    @property
    def count(self) -> int:
        """Synthetic images, S."""
        return self.real if self.run.ipc == "all" else self.run.ipc * len(self.statistics.classes)

    @property
    def batch(self) -> int:
        """Synthetic images of an inner step, B."""
        return min(self.distil.batch_syn or self.count, self.count)

    @property
    def forward_flops(self) -> int:
        """Floating-point operations of one image's forward pass."""
        return networks.forward_flops(self.module(), self.noise(1)[0])

    def module(self) -> nn.Module:
        return networks.build(self.spec, self.statistics.image_shape, torch.Generator().manual_seed(0)).to(self.device)

    def noise(self, count: int) -> tuple[Tensor, Tensor]:
        """Images (count, C, H, W) and labels (count,)."""
        shape = self.statistics.image_shape
        images = torch.randn(count, shape.channels, shape.size, shape.size, generator=torch.Generator().manual_seed(0))
        return images.to(self.device), (torch.arange(count) % shape.classes).to(self.device)


def derivatives(asked: Runtime, subject: Subject, network: FlatNetwork) -> tuple[Derivatives, Backend]:
    """As distil will have them: compiled where the run is long enough to pay for it; what is compiled now is kept for it."""
    images = subject.noise(1)[0].expand(subject.count, -1, -1, -1)
    found, backend, note = outer.differentiate(subject.distil, asked, subject.spec, network, images)
    if note:
        progress.say(f"{subject.name}: {note}")
    return found, backend


def inner_step(subject: Subject, network: FlatNetwork, derivatives: Derivatives) -> float:
    """Seconds of one inner step on a whole batch, forward and backward."""
    distil, (images, labels) = subject.distil, subject.noise(subject.batch)
    theta = networks.flatten(subject.module())
    draws = torch.Generator().manual_seed(0)
    drawn = [augmentation.draw(distil.augmentation, len(images), draws) for _ in range(TIMED_STEPS)]
    index = torch.arange(len(images), device=subject.device)
    steps = [InnerStep(index, draw.to(images.device, images.dtype)) for draw in drawn]
    rule = InnerRule(distil.inner_momentum, distil.inner_weight_decay, 1.0, distil.inner_optimiser)
    syn_lr = torch.tensor(distil.lr_init or LR, device=subject.device)

    def loop(count: int) -> None:
        end = WayPoint(count, theta + 0.01, 1.0, torch.ones((), device=subject.device))
        inner_loop.matching_gradient(derivatives, images, labels, syn_lr, theta, steps[:count], [end], rule)

    loop(1)
    return cost.seconds(lambda: loop(TIMED_STEPS), subject.device) / TIMED_STEPS


def beyond_steps(subject: Subject, derivatives: Derivatives) -> float:
    """Seconds that the loss on real images takes in an iteration: itself, and the steps that a student skips on average."""
    real = subject.distil.real
    if real is None:
        return 0.0
    theta = networks.flatten(subject.module())
    loss, batch = RealLoss(derivatives, *subject.noise(real.images), real.weight), subject.noise(subject.batch)
    loss.reached(theta[None])
    spent = cost.seconds(lambda: loss.reached(theta[None]), subject.device)
    if not real.max_skip:
        return spent
    derivatives.first(theta, *batch)
    return spent + real.max_skip / 2 * cost.seconds(lambda: derivatives.first(theta, *batch), subject.device)


def subject_of(run: Run, statistics: Statistics) -> Subject:
    """On this machine, with one thread where the settings leave it open, as its tasks have."""
    return Subject(run, statistics, runtime.start(run.runtime.model_copy(update={"threads": workers.threads(run.runtime)})))


def rates(subject: Subject) -> tuple[float, float, float]:
    """FLOP/s of an expert's, an inner and a student's step, on batches of no more than `MEASURED` images."""
    asked, forward = subject.run.runtime, subject.forward_flops
    found = [0.0, 0.0, 0.0]
    if (trained := subject.run.trained) is not None:
        own = trained.model_copy(update={"batch_size": min(trained.batch_size, MEASURED)})
        small = replace(subject, run=replace(subject.run, buffer=replace(subject.run.experts, settings=own)))
        backend, _ = choose(asked, subject.device, subject.spec, forward)
        epoch = own.model_copy(update={"epochs": 1, "stop_epoch": None})
        seconds = _steadily(lambda: _expert_epoch(asked, small, backend, 0, subject.device))
        found[0] = expert_training.passes(epoch, subject.real) * forward / seconds
    if subject.distil.iterations:
        small = replace(subject, run=replace(subject.run, distillation=_batch(subject.distil, min(subject.batch, MEASURED))))
        distilled, network = small, FlatNetwork(small.module())
        taken, _ = derivatives(asked, distilled, network)
        found[1] = PASSES * distilled.batch * forward / _steadily(lambda: inner_step(distilled, network, taken))
    own_batch = min(subject.evaluate.batch_size, subject.count, MEASURED)
    protocol_of = subject.evaluate.model_copy(update={"batch_size": own_batch})
    small = replace(subject, run=replace(subject.run, evaluation=protocol_of))
    way = protocol.choose(asked, subject.device, protocol_of, subject.count, forward, subject.spec)
    scored, alone = small, replace(way, together=False)
    found[2] = 3 * subject.count * forward / _steadily(lambda: _students_epoch(scored, 1, alone, 0, subject.device))
    return found[0], found[1], found[2]


def _steadily(measure: Callable[[], float]) -> float:
    """The median of several measurements, as one of a few milliseconds may be anything."""
    return median(measure() for _ in range(MEASUREMENTS))


def _batch(settings: Distillation, images: int) -> Distillation:
    return settings.model_copy(update={"batch_syn": images})


def _ignored(note: str = "") -> None:
    """Nobody watches."""


def experts(asked: Runtime, subject: Subject) -> float:
    """Seconds of the training of all experts, from two steps after two that warm up, in as many processes as they will be."""
    settings = subject.run.trained
    if settings is None:
        return 0.0
    flops = settings.count * expert_training.passes(settings, subject.real) * subject.forward_flops
    backend, _ = choose(asked, subject.device, subject.spec, flops)
    count = workers.processes(asked, subject.device, settings.count, flops)
    work = functools.partial(_expert_epoch, asked, subject, backend)
    found, _ = workers.each(work, count, asked, count, "a few steps of experts", count)
    slowest: float = max(found)
    return slowest * settings.last_epoch * math.ceil(settings.count / count)


def _expert_epoch(
    asked: Runtime, subject: Subject, backend: Backend, index: int, device: torch.device, advance: Advance = _ignored
) -> float:
    """Seconds of an epoch."""
    subject = replace(subject, device=device)
    assert subject.experts is not None
    settings = subject.experts.model_copy(update={"epochs": 2, "stop_epoch": None, "lr": LR})
    images, labels = subject.noise(min(2 * settings.batch_size, subject.real))
    module, draws = subject.module(), torch.Generator().manual_seed(index)
    gradient = expert_training.differentiate(FlatNetwork(module), settings, asked.precision == "bfloat16", backend)
    chunk = expert_training.CHUNK if device.type == "cpu" else None
    epochs = expert_training.train(module, images, labels, settings, draws, gradient, chunk)
    for _ in range(2):  # the initialisation and the first epoch
        next(epochs)
    spent = cost.seconds(lambda: next(epochs), device)
    advance()
    return spent * subject.real / len(images)


def evaluate(asked: Runtime, subject: Subject) -> float:
    """Seconds of the training of all students of all networks."""
    return sum(
        _students(asked, replace(subject, run=replace(subject.run, spec=spec))) for spec in (subject.spec, *subject.cross)
    )


def _students(asked: Runtime, subject: Subject) -> float:
    """Seconds of one network's students, from two epochs after one that warms up, grouped as they will be."""
    settings = subject.evaluate
    way = protocol.choose(asked, subject.device, settings, subject.count, subject.forward_flops, subject.spec)
    groups = 1 if way.together else settings.students
    count = workers.processes(asked, subject.device, groups, way.flops)
    work = functools.partial(_students_epoch, subject, settings.students // groups, way)
    found, _ = workers.each(work, count, asked, count, "a few steps of students", count)
    slowest: float = max(found)
    return slowest * settings.epochs * groups / count  # they end together: students are handed from process to process


def _students_epoch(
    subject: Subject, group: int, way: Way, index: int, device: torch.device, advance: Advance = _ignored
) -> float:
    """Seconds of an epoch of a group of students."""
    subject = replace(subject, device=device)
    settings = subject.evaluate.model_copy(update={"epochs": 3})
    images, labels = subject.noise(min(2 * settings.batch_size, subject.count))
    draws = [torch.Generator().manual_seed(student) for student in range(group)]
    ends: list[float] = []

    def note() -> None:
        ends.append(cost.now(device))

    if subject.spec.keeps_statistics:
        for _ in ModuleStudent(subject.module(), settings, draws[0]).epochs(images, labels, LR, way.bfloat16):
            note()
    else:
        network = FlatNetwork(subject.module())
        thetas = networks.flatten(subject.module()).expand(group, -1)
        gradients = protocol.derivative(network, way)
        protocol.train_students(network, thetas, images, labels, LR, settings, draws, note, gradients)
    advance()
    return (ends[-1] - ends[0]) / 2 * subject.count / len(images)
