"""plan for many GPUs: what experts, distillation and evaluation of a cell take on a cluster, in time, storage and network.

Everything follows from counts of floating-point operations and bytes, a device's rate, and assumptions that are said and may
each be changed. The rate is measured on this machine, or a device's published peak times an assumed utilisation.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from math import ceil

import torch
from rich.console import Console

from src.ground.durations import duration
from src.ground.errors import UserError
from src.maths import derivatives, expert_training, networks
from src.pages.tables import Table
from src.settings.experts import Experts
from src.settings.resolved import Run
from src.stages import plan_steps
from src.stages.plan_memory import Facts
from src.store.values import Statistics

FLOAT, GB, HOUR = 4, 1e9, 3600.0
STUDENT_PASSES = 3  # forward, and twice as much backward
# float32 without tensor cores, TFLOP/s, as their makers publish it
PEAKS = {"t4": 8.1, "v100": 15.7, "l4": 30.3, "a100": 19.5, "a6000": 38.7, "h100": 66.9, "h200": 66.9, "rtx4090": 82.6}


@dataclass(frozen=True)
class Assumptions:
    """What a plan takes for given; each may be set."""

    utilisation: float = 0.3  # of a device's published peak, which a step reaches
    ranks: int = 1  # GPUs that share one distillation
    seeds: int = 1  # repetitions of everything
    network_gbit: float = 10.0  # Gbit/s of each node
    latency_us: float = 50.0  # of an exchange between ranks
    hours_between_failures: float = 2000.0  # of one GPU
    checkpoint_seconds: float = 60.0  # lost half of at a failure
    restart_seconds: float = 120.0  # from a failure until its work goes on
    start_seconds: float = 10.0  # of a task: its process, imports, inputs
    copies: float = 2.0  # of the buffer: on the workers' store and in DVC's remote


@dataclass(frozen=True)
class Rates:
    """FLOP/s of a device at each part, and where the figures come from."""

    experts: float
    distil: float
    students: float
    told: str


@dataclass(frozen=True)
class Load:
    """What a cell asks for: floating-point operations of a task of each part, and bytes."""

    expert: float
    experts: int  # that are trained, which imported ones are not
    distil: float
    student: float
    students: int
    exchanged: float  # bytes that each rank sends in an iteration
    exchanges: int  # of an iteration
    iterations: int
    images: float  # bytes of the training images as a task gets them
    trajectories: int  # that are kept, imported ones too
    trajectory: float  # bytes of one


@dataclass(frozen=True)
class Plan:
    """Seconds of each part on so many GPUs, and GB."""

    experts: float
    distil: float
    students: float
    storage: float
    network: float


def run(cells: Mapping[str, tuple[Run, Facts]], gpus: int, device: str, given: Assumptions) -> None:
    """Print the plan of cells that share their experts, by name."""
    loads = {name: load_of(own, facts, given.ranks) for name, (own, facts) in cells.items()}
    if given.ranks > gpus:
        raise UserError(f"--set ranks={given.ranks} shares a run out on more GPUs than the {gpus} of --gpus: lower one of them")
    largest = max(cells.values(), key=lambda one: one[0].ipc if one[0].ipc != "all" else 0)
    rates = measured(*largest) if device == "this" else published(device, given.utilisation)
    console = Console(highlight=False, markup=False)
    table = Table("", *loads, title=f"{gpus} x {'this machine' if device == 'this' else device}")
    plans = [plan_of(load, rates, gpus, given) for load in loads.values()]
    for words, cells_of in _rows(plans):
        table.add_row(words, *cells_of)
    console.print(table)
    for line in (*_formulas(next(iter(loads.values())), rates, gpus, given), *_given(given)):
        console.print(line, soft_wrap=True)


def plan_of(load: Load, rates: Rates, gpus: int, given: Assumptions) -> Plan:
    """Of all seeds of a cell."""
    expert = _with_failures(_seconds(load.expert, rates.experts), 1, given) + given.start_seconds
    alone = _seconds(load.distil, rates.distil) / given.ranks
    sent = (
        0.0 if given.ranks == 1 else load.exchanged / (given.network_gbit * 1e9 / 8) + load.exchanges * given.latency_us / 1e6
    )
    distil = _with_failures(alone + load.iterations * sent, given.ranks, given) + given.start_seconds
    student = _with_failures(load.student / rates.students, 1, given) + given.start_seconds
    buffer = load.trajectories * load.trajectory
    tasks = given.seeds * (load.experts + load.students)
    return Plan(
        makespan([expert] * (load.experts * given.seeds), gpus),
        makespan([distil] * given.seeds, gpus // given.ranks),
        makespan([student] * (load.students * given.seeds), gpus),
        storage=given.seeds * buffer * given.copies / GB,
        network=(min(gpus, tasks) * load.images + given.seeds * buffer * given.copies) / GB
        + given.seeds * load.iterations * (load.exchanged if given.ranks > 1 else 0.0) * given.ranks / GB,
    )


def _seconds(flops: float, rate: float) -> float:
    """Of a part; what a run does not have has no rate."""
    return flops / rate if flops else 0.0


def makespan(tasks: Iterable[float], slots: int) -> float:
    """Seconds until all are done, where each slot takes the next task when it has ended its own."""
    free = [0.0] * slots
    for seconds in tasks:
        heapq.heapreplace(free, free[0] + seconds)
    return max(free)


def _with_failures(seconds: float, gpus: int, given: Assumptions) -> float:
    """With what failures of these GPUs cost: half a checkpoint interval and a restart each."""
    expected = seconds * gpus / (given.hours_between_failures * HOUR)
    return seconds + expected * (given.checkpoint_seconds / 2 + given.restart_seconds)


def load_of(run: Run, facts: Facts, ranks: int) -> Load:
    """The work of a run, from the same counts as its stages go by."""
    settings, protocol = run.distillation, run.evaluation
    count = facts.train if run.ipc == "all" else run.ipc * facts.shape.classes
    network = networks.build(run.spec, facts.shape, torch.Generator())
    image = torch.zeros(1, facts.shape.channels, facts.shape.size, facts.shape.size)
    forward, parameters = networks.forward_flops(network, image), sum(one.numel() for one in network.parameters())
    batch = min(settings.batch_syn or count, count)
    steps = settings.syn_steps * settings.trajectories_per_iteration
    trained, kept = run.trained, None if run.buffer is None else run.buffer.settings
    pixels = image.numel() * FLOAT
    return Load(
        expert=0.0 if trained is None else _passes(trained, facts) * forward,
        experts=0 if trained is None else trained.count,
        distil=settings.iterations * steps * batch * derivatives.PASSES * forward,
        student=protocol.epochs * count * STUDENT_PASSES * forward,
        students=protocol.students * (1 + len(run.cross)),
        exchanged=steps * (2 * parameters * FLOAT + ceil(batch / ranks) * pixels) * max(ranks - 1, 0),
        exchanges=2 * steps,
        iterations=settings.iterations,
        images=facts.train * pixels,
        trajectories=0 if kept is None else kept.count,
        trajectory=0.0 if kept is None else (kept.last_epoch + 1) * parameters * FLOAT,
    )


def _passes(trained: Experts, facts: Facts) -> int:
    """Of an expert, which is scored on the validation split after each epoch."""
    return expert_training.passes(trained, facts.train) + trained.last_epoch * facts.val


def published(device: str, utilisation: float) -> Rates:
    if device not in PEAKS:
        raise UserError(f"--device {device} is not in the table: choose one of {', '.join(PEAKS)}, or `this` to measure")
    rate = PEAKS[device] * 1e12 * utilisation
    return Rates(rate, rate, rate, f"{PEAKS[device]:g} TFLOP/s of float32 published for {device} x utilisation")


def measured(run: Run, facts: Facts) -> Rates:
    """Of a few steps on this machine, on noise, with the run's own network and batches, or smaller ones."""
    subject = plan_steps.subject_of(run, _statistics(facts))
    experts, distil, students = plan_steps.rates(subject)
    return Rates(experts, distil, students, f"measured on this machine ({subject.device}), a few steps of each part")


def _statistics(facts: Facts) -> Statistics:
    """Of images that need not be there."""
    shape, names = facts.shape, [str(number) for number in range(facts.shape.classes)]
    ones = (1.0,) * shape.channels
    counts = {split: {"all": number} for split, number in (("train", facts.train), ("val", facts.val))}
    return Statistics(tuple(names), shape.channels, shape.size, 255, ones, ones, ones, ones, counts, "", ())


# -- in words


def _rows(plans: list[Plan]) -> Iterable[tuple[str, list[str]]]:
    yield "training the experts", [duration(one.experts) for one in plans]
    yield "distilling", [duration(one.distil) for one in plans]
    yield "evaluating", [duration(one.students) for one in plans]
    yield "all, one after the other", [duration(one.experts + one.distil + one.students) for one in plans]
    yield "storage of the buffer", [f"{one.storage:,.1f} GB" for one in plans]
    yield "over the network", [f"{one.network:,.1f} GB" for one in plans]


def _formulas(load: Load, rates: Rates, gpus: int, given: Assumptions) -> Iterable[str]:
    """With the first cell's numbers."""
    told = ", ".join(f"{name} {getattr(rates, name) / 1e12:.3g}" for name in ("experts", "distil", "students"))
    yield f"rates, TFLOP/s: {told}; {rates.told}. The numbers below are of the first column."
    expert, student = _seconds(load.expert, rates.experts), load.student / rates.students
    distil = _seconds(load.distil, rates.distil) / given.ranks
    rounds = ceil(load.experts * given.seeds / gpus)
    yield "an expert = epochs x (training images x passes + validation images) x forward FLOPs / rate"
    yield f"  = {load.expert:.3g} FLOPs / rate = {duration(expert)}; {load.experts} x {given.seeds} seeds in {rounds} rounds"
    yield f"distilling = iterations x steps x batch x {derivatives.PASSES} passes x forward FLOPs / rate / ranks"
    yield f"  = {load.distil:.3g} FLOPs / rate / {given.ranks} = {duration(distil)}"
    yield f"  with ranks also {load.exchanged / 1e6:,.1f} MB / network + {load.exchanges} x latency in each iteration"
    yield f"a student = epochs x images x {STUDENT_PASSES} passes x forward FLOPs / rate"
    yield f"  = {load.student:.3g} FLOPs / rate = {duration(student)}; {load.students} x {given.seeds} seeds"
    yield "failures add seconds x GPUs / time between failures x (half a checkpoint interval + a restart)"
    yield f"storage = experts x (epochs + 1) x 4 P bytes x copies x seeds, {load.trajectory / 1e6:,.1f} MB an expert"
    yield f"network = images to each GPU, {load.images / GB:.3g} GB, + the buffer's copies + what ranks exchange"


def _given(given: Assumptions) -> Iterable[str]:
    yield "assumed, and set by --set NAME=VALUE: " + ", ".join(f"{name}={value:g}" for name, value in asdict(given).items())
    yield "  and any field of the settings, as experts.count, distill.iterations, distill.batch_syn, evaluate.students"
