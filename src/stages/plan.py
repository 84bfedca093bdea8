"""plan: what a run will cost, from a few measured steps of the real setting. No stage of the pipeline: it makes no artifact.

It needs the data set's statistics alone, neither images nor experts.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from rich.console import Console

from src.ground import runtime
from src.ground.durations import duration
from src.maths import inner_loop
from src.maths.derivatives import Backend, Derivatives
from src.maths.networks import FlatNetwork
from src.pages.tables import Table
from src.settings.distillation import Distillation
from src.settings.resolved import Run
from src.settings.runtime import Runtime
from src.stages import plan_steps, work
from src.stages.plan_steps import TIMED_STEPS, Subject
from src.store.store import Store
from src.tracking import mlflow_store, stores

LOADING_COPIES = 3  # of the training images as real numbers, which normalising them holds at once
MIB, FLOAT = 2**20, 4  # bytes


@dataclass(frozen=True)
class Plan:
    """A run's cost. Times are seconds of this machine as busy as it is now, memory is MiB."""

    parameters: int  # P
    backend: Backend
    step: float  # an inner step, forward and backward
    iteration: float
    distil: float
    memory: float  # peak of distil
    beyond: float  # of an iteration, what the loss on real images takes
    stored: float  # of the peak, what the inner loop keeps of its steps
    buffer: float  # of the expert buffer on disk
    experts: float
    evaluate: float


def run(store: Store, run: Run) -> None:
    """Print the plan of a run."""
    subject = Subject(run, store.load_statistics(run.dataset.name), work.start(run.runtime, run.name))
    Console(highlight=False, markup=False).print(_table(subject, measure(run.runtime, subject)))


def measure(asked: Runtime, subject: Subject) -> Plan:
    """Measure steps of distil, experts and evaluate, in this order, so that the peak memory is distil's."""
    distil, network = subject.distil, FlatNetwork(subject.module())
    if stores.current() != stores.OWN:  # which a stage tells by itself
        mlflow_store.load()
    before = runtime.peak_memory_mib(subject.device)
    derivatives, backend = plan_steps.derivatives(asked, subject, network)
    step = plan_steps.inner_step(subject, network, derivatives) if distil.iterations else 0.0
    beyond = plan_steps.beyond_steps(subject, derivatives) if distil.iterations else 0.0
    stored, timed = (_stored(subject, network, derivatives, steps) for steps in (distil.syn_steps, TIMED_STEPS))
    loop = runtime.peak_memory_mib(subject.device) + max(stored - timed, 0.0)
    loading = before + LOADING_COPIES * subject.real * subject.noise(1)[0].numel() * FLOAT / MIB
    iteration = (step * _batches(subject) + beyond) * distil.trajectories_per_iteration
    return Plan(
        parameters=network.dimension,
        backend=backend,
        step=step,
        iteration=iteration,
        distil=iteration * distil.iterations,
        memory=loop if subject.device.type == "cuda" else max(loop, loading),
        beyond=beyond,
        stored=stored,
        buffer=network.dimension * FLOAT / MIB * subject.experts.count * (subject.experts.last_epoch + 1)
        if subject.experts
        else 0.0,
        experts=plan_steps.experts(asked, subject),
        evaluate=plan_steps.evaluate(asked, subject),
    )


def _stored(subject: Subject, network: FlatNetwork, derivatives: Derivatives, steps: int) -> float:
    """MiB that a loop of so many steps keeps of them."""
    if not subject.distil.iterations:
        return 0.0
    numbers = 3 if subject.distil.inner_optimiser == "adam" else 1
    thetas = steps * numbers * network.dimension * FLOAT
    return (thetas + derivatives.kept_bytes(subject.noise(subject.batch)[0], thetas, steps)) / MIB


def _batches(subject: Subject) -> float:
    """Whole batches of one inner loop; the last chunk of each permutation may be smaller."""
    drawn = inner_loop.draw_steps(subject.count, subject.distil.syn_steps, subject.batch, (), torch.Generator())
    return sum(len(step.index) for step in drawn) / subject.batch


def _table(subject: Subject, plan: Plan) -> Table:
    """The plan in words and units."""
    distil, experts, students = subject.distil, subject.experts, subject.evaluate
    shape, fresh = subject.statistics.image_shape, students.students * (1 + len(subject.cross))
    table = Table(f"plan of {subject.name}", "")
    table.add_row("synthetic images", f"{subject.count:,} of {shape.channels}x{shape.size}x{shape.size}")
    table.add_row("parameters, P", f"{plan.parameters:,}")
    if experts is not None:
        count, last = experts.count, experts.last_epoch
        spent = "none" if experts.imported else duration(plan.experts)
        whose = "imported experts" if experts.imported else "experts"
        table.add_row("training the experts", f"{spent}: {count} {whose}, {last} epochs each")
        table.add_row("expert buffer on disk", f"{plan.buffer:,.0f} MiB: {count} x {last + 1} snapshots of 4P bytes")
    if distil.iterations:
        table.add_row("derivatives", plan.backend)
        table.add_row("an inner step", duration(plan.step))
        several = f" x {distil.trajectories_per_iteration} trajectories" if distil.trajectories_per_iteration > 1 else ""
        table.add_row("an iteration", f"{duration(plan.iteration)}: {distil.syn_steps} inner steps{several}")
        if distil.real is not None:
            table.add_row("of it, real images' loss", f"{duration(plan.beyond)}: {distil.real.images} images{_skipped(distil)}")
        table.add_row("distilling", f"{duration(plan.distil)}: {distil.iterations:,} iterations")
        table.add_row("peak memory of distilling", f"about {plan.memory:,.0f} MiB")
        table.add_row("of it, the stored inner loop", f"{plan.stored:,.1f} MiB")
    else:
        table.add_row("distilling", "0 iterations: the initial images are kept")
    table.add_row("evaluating", f"{duration(plan.evaluate)}: {fresh} students, {students.epochs:,} epochs each")
    return table


def _skipped(distil: Distillation) -> str:
    assert distil.real is not None
    return f", and {distil.real.max_skip / 2:g} steps skipped on average" if distil.real.max_skip else ""
