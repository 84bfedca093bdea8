"""experts: networks trained on the real training split -> the expert buffer, one trajectory a file, and its curves."""

from __future__ import annotations

import functools
import statistics as numbers
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from src.ground import runtime
from src.ground.params import Params
from src.ground.seeding import generator
from src.ground.settings import Experts, Network
from src.io import artifacts, cost, files, progress, tracking, workers
from src.io.artifacts import Record, Statistics
from src.io.progress import Advance
from src.io.workers import Array
from src.maths import expert_training, networks, scores, smoothness
from src.maths.derivatives import forward_flops
from src.maths.expert_training import Epoch, Gradient
from src.maths.networks import FlatNetwork, ImageShape
from src.stages import run_log
from src.stages.records import experts_record


@dataclass(frozen=True)
class Training:
    """What the training of every expert takes, in whatever process."""

    name: str
    settings: Experts
    spec: Network
    shape: ImageShape
    record: Record
    seed: int
    bfloat16: bool
    compiled: bool
    train: tuple[Array, Array]  # images (N, C, H, W), labels (N,)
    val: tuple[Array, Array]


def run(params: Params, name: str) -> None:
    """Train the experts `name`."""
    settings = params.expert_set(name)
    device = runtime.start(params.runtime)
    statistics = artifacts.load_statistics(settings.dataset)
    record = experts_record(params, name)
    say_what_is_needed(params, name)
    find = {"ast.fingerprint": tracking.fingerprint(vars(record))}
    with tracking.track(settings.dataset, f"experts/{name}", "experts", find) as tracker:
        tracker.params({"experts": settings.model_dump(), "network": params.networks[settings.network].model_dump()})
        tracker.dataset(settings.dataset, artifacts.split_file(settings.dataset, "train"), "training")
        with cost.measured(device) as spent:
            rows, peak = train_all(params, name, statistics, record, device)
        spent.peak_memory_mib = max(spent.peak_memory_mib, peak)
        files.write_csv(artifacts.expert_curves_file(name), rows)
        _forget_others(name, settings.count)
        cost.keep(artifacts.trajectories_folder(name), spent)
        run_log.log_experts(tracker, name, rows, spent)
    final = [row["val_accuracy"] for row in rows if row["epoch"] == settings.last_epoch]
    progress.say(f"{name}: {settings.count} experts, validation accuracy {numbers.mean(final):.1%}")


def say_what_is_needed(params: Params, name: str) -> None:
    """Experts are the dearest part: say where the runs of params.yaml match to fewer epochs than are trained."""
    distillations = [params.distillations[key] for key, run in params.runs.items() if run.experts == name]
    needed = [one.max_start_epoch - 1 + one.expert_epochs for one in distillations if one.iterations]
    last = params.experts[name].last_epoch
    if needed and max(needed) < last:
        saved = 1 - max(needed) / last
        progress.say(
            f"{name}: its runs need {max(needed)} of {last} epochs: stop_epoch: {max(needed)} would save {100 * saved:.0f} %"
        )


def train_all(
    params: Params, name: str, statistics: Statistics, record: Record, device: torch.device
) -> tuple[list[dict[str, Any]], float]:
    """Train every expert; the curves' rows, ordered by expert and epoch, and the largest memory of a process in MiB."""
    settings, spec, shape = params.experts[name], params.networks[params.experts[name].network], statistics.shape
    train, val = (_arrays(settings.dataset, split) for split in ("train", "val"))
    flops = settings.count * _flops(settings, spec, shape, len(train[1]))
    compiled, reason = runtime.compiles(params.runtime, flops)
    if reason:
        progress.say(f"{name}: {reason}")
    training = Training(
        name, settings, spec, shape, record, params.seed, params.runtime.precision == "bfloat16", compiled, train, val
    )
    processes = workers.processes(params.runtime, device, settings.count, flops)
    units = settings.count * settings.last_epoch
    work = functools.partial(_train_one, training)
    found, peak = workers.each(work, settings.count, params.runtime, processes, f"experts {name}", units)
    return [row for rows in found for row in rows], peak


def _arrays(dataset: str, split: str) -> tuple[Array, Array]:
    images, labels = artifacts.load_inputs(dataset, split)
    return images.numpy(), labels.numpy()


def _flops(settings: Experts, spec: Network, shape: ImageShape, images: int) -> float:
    """Floating-point operations of training one expert."""
    network = FlatNetwork(networks.build(spec, shape, torch.Generator()))
    image = torch.zeros(1, shape.channels, shape.size, shape.size)
    return expert_training.passes(settings, images) * forward_flops(network, torch.zeros(network.dimension), image)


def _train_one(training: Training, index: int, device: torch.device, advance: Advance) -> list[dict[str, Any]]:
    """Train one expert, wherever joblib puts it, and save its trajectory as soon as it is whole; its curves' rows."""
    thetas, rows = [], []
    for epoch, accuracy in _epochs(training, index, device):
        thetas.append(epoch.theta.cpu())
        if epoch.number:
            figures = {"train_loss": epoch.train_loss, "gradient_penalty": epoch.penalty, "val_accuracy": accuracy}
            rows.append({"expert": index, "epoch": epoch.number, **figures})
            advance(f"validation {accuracy:.1%}")
    trajectory = torch.stack(thetas)  # (T + 1, P)
    artifacts.save_trajectory(training.name, index, trajectory, training.record)
    steps = smoothness.parameter_steps(trajectory).tolist()
    return [{**row, "parameter_step": step} for row, step in zip(rows, steps, strict=True)]


def _epochs(training: Training, index: int, device: torch.device) -> Iterator[tuple[Epoch, float]]:
    """Each epoch of one expert, from the initialisation on, with its accuracy on the validation split."""
    images, labels, val_images, val_labels = (torch.from_numpy(x).to(device) for x in (*training.train, *training.val))
    start = networks.build(training.spec, training.shape, generator(training.seed, "experts", index, "initialisation"))
    network, gradient = _derivative(
        training.spec, training.shape, training.settings, device, training.bfloat16, training.compiled
    )
    draws = generator(training.seed, "experts", index, "training")
    chunk = expert_training.CHUNK if device.type == "cpu" else None
    for epoch in expert_training.train(start.to(device), images, labels, training.settings, draws, gradient, chunk):
        predicted = scores.predictions(functools.partial(network, epoch.theta), val_images)
        yield epoch, scores.accuracy(predicted, val_labels)


@functools.cache
def _derivative(
    spec: Network, shape: ImageShape, settings: Experts, device: torch.device, bfloat16: bool, compiled: bool
) -> tuple[FlatNetwork, Gradient]:
    """The network as a function and the derivative of its steps; a process compiles it once for all experts it trains."""
    network = FlatNetwork(networks.build(spec, shape, torch.Generator()).to(device))
    gradient = expert_training.differentiate(network, settings, bfloat16)
    return network, runtime.compiled(gradient) if compiled else gradient


def _forget_others(name: str, count: int) -> None:
    """Delete trajectories that an earlier, larger buffer of this name left behind."""
    keep = {artifacts.trajectory_file(name, index) for index in range(count)}
    for path in artifacts.trajectories_folder(name).iterdir():
        if path not in keep:
            path.unlink()
