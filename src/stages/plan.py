"""plan: what a run will cost, from a few measured steps of the real setting. No stage of the pipeline: it makes no artifact.

It needs the data set's statistics alone: how long a step takes does not depend on what the images show, so that noise
stands for them, and the experts need not be there.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from src.ground import runtime
from src.ground.params import Params
from src.ground.settings import Distillation, Experts, Network, Protocol, Run, Runtime
from src.io import artifacts, progress
from src.io.artifacts import Statistics
from src.maths import augmentation, expert_training, inner_loop, networks, protocol
from src.maths.derivatives import PASSES, Derivatives, forward_flops
from src.maths.inner_loop import InnerRule, InnerStep
from src.maths.matching import WayPoint
from src.maths.networks import FlatNetwork

TIMED_STEPS = 2  # after some that warm up and compile
LOADING_COPIES = 3  # of the training images as real numbers, which normalising them holds at once
LR = 1e-6  # low enough for training on noise not to diverge
MIB, FLOAT = 2**20, 4  # bytes
UNITS = (("d", 86400), ("h", 3600), ("min", 60), ("s", 1))


@dataclass(frozen=True)
class Subject:
    """A run with all that it points to."""

    name: str
    run: Run
    distil: Distillation
    experts: Experts
    evaluate: Protocol
    spec: Network
    statistics: Statistics
    device: torch.device

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

    def module(self) -> nn.Module:
        return networks.build(self.spec, self.statistics.shape, torch.Generator().manual_seed(0)).to(self.device)

    def noise(self, count: int) -> tuple[Tensor, Tensor]:
        """Images (count, C, H, W) and labels (count,)."""
        shape = self.statistics.shape
        images = torch.randn(count, shape.channels, shape.size, shape.size, generator=torch.Generator().manual_seed(0))
        return images.to(self.device), (torch.arange(count) % shape.classes).to(self.device)


@dataclass(frozen=True)
class Plan:
    """A run's cost. Times are seconds of this machine as busy as it is now, memory is MiB."""

    parameters: int  # P
    compiled: bool
    step: float  # an inner step, forward and backward
    iteration: float
    distil: float
    memory: float  # peak of distil
    stored: float  # of it, thetas and momenta of the inner loop
    buffer: float  # of the expert buffer on disk
    experts: float
    evaluate: float


def run(params: Params, name: str) -> None:
    """Print the plan of the run `name`."""
    params.run(name)
    subject = subject_of(params, name, runtime.start(params.runtime))
    Console(highlight=False).print(_table(subject, measure(params.runtime, subject)))


def subject_of(params: Params, name: str, device: torch.device) -> Subject:
    """The run with its sections and its data set's statistics; raises ArtifactError where these are not prepared."""
    settings = params.runs[name]
    return Subject(
        name=name,
        run=settings,
        distil=params.distillations[name],
        experts=params.experts[settings.experts],
        evaluate=params.evaluate[settings.evaluate],
        spec=params.networks[settings.network],
        statistics=artifacts.load_statistics(settings.dataset),
        device=device,
    )


def measure(asked: Runtime, subject: Subject) -> Plan:
    """Measure steps of distil, experts and evaluate, in this order, so that the peak memory is distil's."""
    distil, network = subject.distil, FlatNetwork(subject.module())
    before = runtime.peak_memory_mib(subject.device)
    derivatives, compiled = _derivatives(asked, subject, network)
    step = _inner_step(subject, network, derivatives) if distil.iterations else 0.0
    floats = network.dimension * FLOAT / MIB
    stored = 2 * floats * distil.syn_steps if distil.iterations else 0.0
    loop = runtime.peak_memory_mib(subject.device) + max(stored - 2 * floats * TIMED_STEPS, 0.0)
    loading = before + LOADING_COPIES * subject.real * subject.noise(1)[0].numel() * FLOAT / MIB
    iteration = step * _batches(subject) * distil.trajectories_per_iteration
    return Plan(
        parameters=network.dimension,
        compiled=compiled,
        step=step,
        iteration=iteration,
        distil=iteration * distil.iterations,
        memory=loop if subject.device.type == "cuda" else max(loop, loading),
        stored=stored,
        buffer=floats * subject.experts.count * (subject.experts.epochs + 1),
        experts=_experts(subject),
        evaluate=_evaluate(subject),
    )


def _derivatives(asked: Runtime, subject: Subject, network: FlatNetwork) -> tuple[Derivatives, bool]:
    """As distil will have them: compiled where the run is long enough to pay for it; what is compiled now is kept for it."""
    distil = subject.distil
    passes = PASSES * distil.iterations * distil.syn_steps * distil.trajectories_per_iteration * subject.batch
    theta = torch.zeros(network.dimension, device=subject.device)
    compiled, reason = runtime.compiles(asked, passes * forward_flops(network, theta, subject.noise(1)[0]))
    if reason:
        progress.say(f"{subject.name}: {reason}")
    return Derivatives(network, asked.precision == "bfloat16", compiled), compiled


def _inner_step(subject: Subject, network: FlatNetwork, derivatives: Derivatives) -> float:
    """Seconds of one inner step on a whole batch, forward and backward."""
    distil, (images, labels) = subject.distil, subject.noise(subject.batch)
    theta = networks.flatten(subject.module())
    draws = torch.Generator().manual_seed(0)
    drawn = [augmentation.draw(distil.augmentation, len(images), draws) for _ in range(TIMED_STEPS)]
    index = torch.arange(len(images), device=subject.device)
    steps = [InnerStep(index, draw.to(images.device, images.dtype)) for draw in drawn]
    rule = InnerRule(distil.inner_momentum, distil.inner_weight_decay, coefficient=1.0)
    syn_lr = torch.tensor(distil.lr_init, device=subject.device)

    def loop(count: int) -> None:
        end = WayPoint(count, theta + 0.01, 1.0, torch.ones((), device=subject.device))
        inner_loop.matching_gradient(derivatives, images, labels, syn_lr, theta, steps[:count], [end], rule)

    loop(1)
    return _seconds(lambda: loop(TIMED_STEPS), subject.device) / TIMED_STEPS


def _batches(subject: Subject) -> float:
    """Whole batches of one inner loop; the last chunk of each permutation may be smaller."""
    drawn = inner_loop.draw_steps(subject.count, subject.distil.syn_steps, subject.batch, (), torch.Generator())
    return sum(len(step.index) for step in drawn) / subject.batch


def _seconds(call: Callable[[], object], device: torch.device) -> float:
    """Wall time of a call, in seconds, the device's own work included."""
    start = _now(device)
    call()
    return _now(device) - start


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _experts(subject: Subject) -> float:
    """Seconds of the training of all experts, from two steps after two that warm up."""
    settings = subject.experts.model_copy(update={"epochs": 2, "lr": LR})
    images, labels = subject.noise(min(2 * settings.batch_size, subject.real))
    epochs = expert_training.train(subject.module(), images, labels, settings, torch.Generator().manual_seed(0))
    for _ in range(2):  # the initialisation and the first epoch
        next(epochs)
    epoch = _seconds(lambda: next(epochs), subject.device) * subject.real / len(images)
    return epoch * subject.experts.epochs * subject.experts.count


def _evaluate(subject: Subject) -> float:
    """Seconds of the training of all students, from two epochs after one that warms up."""
    settings = subject.evaluate.model_copy(update={"epochs": 3})
    images, labels = subject.noise(min(2 * settings.batch_size, subject.count))
    thetas = networks.flatten(subject.module()).expand(settings.students, -1)
    draws = [torch.Generator().manual_seed(student) for student in range(settings.students)]
    ends: list[float] = []

    def tick() -> None:
        ends.append(_now(subject.device))

    network = FlatNetwork(subject.module())
    protocol.train_students(network, thetas, images, labels, LR, settings, draws, on_epoch=tick)
    epoch = (ends[-1] - ends[0]) / 2 * subject.count / len(images)
    return epoch * subject.evaluate.epochs


def _table(subject: Subject, plan: Plan) -> Table:
    """The plan in words and units."""
    distil, experts, students = subject.distil, subject.experts, subject.evaluate
    shape, last = subject.statistics.shape, experts.epochs
    table = Table(f"plan of {subject.name}", "", title_justify="left")
    table.add_row("synthetic images", f"{subject.count:,} of {shape.channels}x{shape.size}x{shape.size}")
    table.add_row("parameters, P", f"{plan.parameters:,}")
    table.add_row("training the experts", f"{duration(plan.experts)}: {experts.count} experts, {last} epochs each")
    table.add_row("expert buffer on disk", f"{plan.buffer:,.0f} MiB: {experts.count} x {last + 1} snapshots of 4P bytes")
    if distil.iterations:
        table.add_row("compiled", "yes" if plan.compiled else "no")
        table.add_row("an inner step", duration(plan.step))
        several = f" x {distil.trajectories_per_iteration} trajectories" if distil.trajectories_per_iteration > 1 else ""
        table.add_row("an iteration", f"{duration(plan.iteration)}: {distil.syn_steps} inner steps{several}")
        table.add_row("distilling", f"{duration(plan.distil)}: {distil.iterations:,} iterations")
        table.add_row("peak memory of distilling", f"about {plan.memory:,.0f} MiB")
        table.add_row("of it, the stored inner loop", f"{plan.stored:,.1f} MiB: 2P numbers a step")
    else:
        table.add_row("distilling", "0 iterations: the initial images are kept")
    table.add_row("evaluating", f"{duration(plan.evaluate)}: {students.students} students, {students.epochs:,} epochs")
    return table


def duration(seconds: float) -> str:
    """Words for a number of seconds: '0.76 s', '3 min 20 s', '7 h 5 min', '2 d 3 h'."""
    for (unit, size), (smaller, part) in pairwise(UNITS):
        if seconds >= size:
            return f"{int(seconds // size):,} {unit} {int(seconds % size // part)} {smaller}"
    return f"{seconds:.3g} s"
