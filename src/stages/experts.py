"""experts: networks trained on the real training split -> the expert buffer, one trajectory a file, and its curves."""

from __future__ import annotations

import functools
import statistics as numbers
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from src.ground import runtime
from src.ground.errors import DivergenceError
from src.ground.seeding import generator
from src.maths import expert_training, networks, scores, smoothness
from src.maths.expert_training import Gradient, State
from src.maths.networks import FlatNetwork, ImageShape
from src.process import progress, stopping, workers
from src.process.progress import Advance
from src.process.workers import Array
from src.settings.experts import Experts
from src.settings.networks import Network
from src.settings.resolved import Buffer
from src.stages import run_log, work
from src.stages.records import experts_record, prepared
from src.store import checkpoints, cost, files, removed
from src.store.checkpoints import Checkpoint, Stored, Work
from src.store.cost import Cost
from src.store.store import Store
from src.store.values import Record, Statistics
from src.tracking import tracker as tracking

Row = dict[str, Any]


@dataclass(frozen=True)
class Training:
    """What the training of every expert takes, in whatever process."""

    store: Store
    name: str
    settings: Experts
    spec: Network
    shape: ImageShape
    record: Record
    work: Work
    seed: int
    bfloat16: bool
    compiled: bool
    train: tuple[Array, Array]  # images (N, C, H, W), labels (N,)
    val: tuple[Array, Array]


@dataclass(frozen=True)
class Expert:
    """One expert on its way."""

    state: State
    thetas: tuple[Tensor, ...]  # theta*_0 .. of the finished epochs, (P,) each, on the CPU
    rows: tuple[Row, ...]  # of the finished epochs

    def stored(self, settings: Experts) -> Stored:
        """What its checkpoint holds; raises DivergenceError rather than keep numbers that are not finite."""
        if self.state.steps:
            expert_training.check(self.state, settings)
        tensors = {name: value for name, value in vars(self.state).items() if isinstance(value, Tensor)}
        facts = {"epochs": self.state.epochs, "steps": self.state.steps, "rows": self.rows}
        return {**tensors, "thetas": torch.stack(self.thetas)}, facts


def restored(stored: Stored, device: torch.device) -> Expert:
    """The expert that a checkpoint holds."""
    tensors, facts = stored
    moved = {name: tensors[name].to(device) for name in ("theta", "moments", "figures")}
    state = State(**moved, draws=tensors["draws"], pending=tensors["pending"], epochs=facts["epochs"], steps=facts["steps"])
    return Expert(state, tensors["thetas"].unbind(), tuple(facts["rows"]))


def run(store: Store, buffer: Buffer) -> None:
    """Train the experts of a buffer, or those that are not there yet."""
    with checkpoints.at_work("experts", buffer.name):
        removed.take_back(store, buffer.name)
        _run(store, buffer)


def _run(store: Store, buffer: Buffer) -> None:
    name, dataset, settings = buffer.name, buffer.dataset.name, buffer.settings
    device = work.start(buffer.runtime, name)
    statistics = prepared(store, buffer.dataset, "train", "val")
    record = work.whole(experts_record(store, buffer), buffer.runtime, "experts", device)
    say_what_is_needed(buffer)
    find = {"ast.fingerprint": tracking.fingerprint({**vars(record), "count": settings.count})}
    with tracking.track(dataset, f"experts/{name}", "experts", find) as tracker:
        tracker.params({"experts": settings.model_dump(), "network": buffer.spec.model_dump()})
        tracker.dataset(dataset, store.split_file(dataset, "train"), "training")
        with cost.measured(device) as spent:
            rows, elsewhere = train_all(store, buffer, statistics, record, device)
        spent.add(elsewhere)
        files.write_csv(store.expert_curves_file(name), rows)
        _forget_others(store, name, settings.count)
        cost.keep(store.trajectories_folder(name), spent)
        run_log.log_experts(tracker, store, name, rows, spent)
    final = [row["val_accuracy"] for row in rows if row["epoch"] == settings.last_epoch]
    progress.say(f"{name}: {settings.count} experts, validation accuracy {numbers.mean(final):.1%}")


def say_what_is_needed(buffer: Buffer) -> None:
    """Experts are the dearest part: say where the runs of params.yaml match to fewer epochs than are trained."""
    needed, last = buffer.needed, buffer.settings.last_epoch
    if needed is not None and needed < last:
        saved = f"stop_epoch: {needed} would save {100 * (1 - needed / last):.0f} %"
        progress.say(f"{buffer.name}: its runs need {needed} of {last} epochs: {saved}")


def train_all(
    store: Store, buffer: Buffer, statistics: Statistics, record: Record, device: torch.device
) -> tuple[list[dict[str, Any]], Cost]:
    """Train every expert; the curves' rows by expert and epoch, and the cost of other processes, earlier ones included."""
    name, settings, spec, shape, asked = buffer.name, buffer.settings, buffer.spec, statistics.shape, buffer.runtime
    train, val = (_arrays(store, buffer.dataset.name, split) for split in ("train", "val"))
    flops = settings.count * _flops(settings, spec, shape, len(train[1]))
    compiled, reason = runtime.compiles(asked, flops)
    if reason:
        progress.say(f"{name}: {reason}")
    training = Training(
        store, name, settings, spec, shape, record, work.of(asked, "experts", name, record, spec, compiled), buffer.seed,
        asked.precision == "bfloat16", compiled, train, val,
    )  # fmt: skip
    processes = workers.processes(asked, device, settings.count, flops)
    units, earlier = settings.count * settings.last_epoch, [training.work.checkpoint(i).facts() for i in range(settings.count)]
    before = sum(len(facts["rows"]) for facts in earlier if facts)
    if any(earlier):
        progress.say(f"{name}: resumed at {before} of {units} epochs of {settings.count} experts")
    train_one = functools.partial(_train_one, training)
    seconds = training.work.seconds_spent(settings.count) / processes
    found, peak = workers.each(train_one, settings.count, asked, processes, f"experts {name}", units, before)
    return [row for rows in found for row in rows], Cost(seconds, peak)


def _arrays(store: Store, dataset: str, split: str) -> tuple[Array, Array]:
    images, labels = store.load_inputs(dataset, split)
    return images.numpy(), labels.numpy()


def _flops(settings: Experts, spec: Network, shape: ImageShape, images: int) -> float:
    """Floating-point operations of training one expert."""
    network = networks.build(spec, shape, torch.Generator())
    image = torch.zeros(1, shape.channels, shape.size, shape.size)
    return expert_training.passes(settings, images) * networks.forward_flops(network, image)


def _train_one(training: Training, index: int, device: torch.device, advance: Advance) -> list[Row]:
    """Train one expert, wherever joblib puts it, and save its trajectory as soon as it is whole; its curves' rows.

    A trajectory of the same work that lies there already is kept, and what an earlier process began is continued.
    """
    store, checkpoint = training.store, training.work.checkpoint(index)
    path = store.trajectory_file(training.name, index)
    stored = checkpoint.load()
    if stored is not None and "trajectory" in stored[1]:
        if path.exists() and files.digest(path) == stored[1]["trajectory"]:
            return list(stored[1]["rows"])
        stored = None  # gone or changed since
    expert = _trained(training, index, device, checkpoint, stored, advance)
    trajectory = torch.stack(expert.thetas)  # (T + 1, P)
    store.save_trajectory(training.name, index, trajectory, training.record)
    network = FlatNetwork(networks.build(training.spec, training.shape, torch.Generator()))
    steps = smoothness.parameter_steps(trajectory).tolist(), smoothness.common_logit_steps(trajectory, network).tolist()
    rows = [
        {**row, "parameter_step": step, "common_logit_step": common}
        for row, step, common in zip(expert.rows, *steps, strict=True)
    ]
    checkpoint.save({}, {"trajectory": files.digest(path), "rows": rows})
    return rows


def _trained(
    training: Training, index: int, device: torch.device, checkpoint: Checkpoint, stored: Stored | None, advance: Advance
) -> Expert:
    """One expert after its last epoch."""
    expert = restored(stored, device) if stored else _first(training, index, device)
    try:
        with checkpoint.kept() as keep:
            for expert in _steps(training, index, expert, device):  # noqa: B020, each takes the place of the one before
                keep(functools.partial(expert.stored, training.settings))
                if expert.state.between_epochs:
                    advance(f"validation {expert.rows[-1]['val_accuracy']:.1%}")
    except DivergenceError as error:
        good = f"last good train loss {expert.rows[-1]['train_loss']:g}" if expert.rows else "no good epoch before"
        raise DivergenceError(f"{training.name}, expert {index}: {error}; {good}") from None
    return expert


def _first(training: Training, index: int, device: torch.device) -> Expert:
    """One expert before its first step."""
    network = networks.build(training.spec, training.shape, generator(training.seed, "experts", index, "initialisation"))
    state = expert_training.start(network.to(device), generator(training.seed, "experts", index, "training"))
    return Expert(state, (state.theta.cpu(),), ())


def _steps(training: Training, index: int, expert: Expert, device: torch.device) -> Iterator[Expert]:
    """One expert after each further step; where an epoch ends, its accuracy on the validation split is taken."""
    images, labels, val_images, val_labels = (torch.from_numpy(x).to(device) for x in (*training.train, *training.val))
    network, gradient = _derivative(
        training.spec, training.shape, training.settings, device, training.bfloat16, training.compiled
    )
    logits, gradient = stopping.interruptible(network), stopping.interruptible(gradient)
    chunk = expert_training.CHUNK if device.type == "cpu" else None
    for state in expert_training.steps(expert.state, images, labels, training.settings, gradient, chunk):
        expert = replace(expert, state=state)
        if state.between_epochs:
            predicted = scores.predictions(functools.partial(logits, state.theta), val_images)
            row = _row(index, state, scores.accuracy(predicted, val_labels))
            expert = Expert(state, (*expert.thetas, state.theta.cpu()), (*expert.rows, row))
        yield expert


def _row(index: int, state: State, accuracy: float) -> Row:
    epoch = expert_training.epoch_of(state)
    figures = {"train_loss": epoch.train_loss, "gradient_penalty": epoch.penalty, "val_accuracy": accuracy}
    return {"expert": index, "epoch": epoch.number, **figures}


@functools.cache
def _derivative(
    spec: Network, shape: ImageShape, settings: Experts, device: torch.device, bfloat16: bool, compiled: bool
) -> tuple[FlatNetwork, Gradient]:
    """The network as a function and the derivative of its steps; a process compiles it once for all experts it trains."""
    network = FlatNetwork(networks.build(spec, shape, torch.Generator()).to(device))
    gradient = expert_training.differentiate(network, settings, bfloat16)
    return network, runtime.compiled(gradient) if compiled else gradient


def _forget_others(store: Store, name: str, count: int) -> None:
    """Delete what an earlier, larger buffer of this name left behind: DVC keeps the folder as it is between two runs."""
    keep = {store.trajectory_file(name, index) for index in range(count)}
    for path in store.trajectories_folder(name).iterdir():
        if path not in keep:
            path.unlink()
