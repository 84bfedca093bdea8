"""evaluate: a synthetic set -> accuracies of fresh students. The only stage that opens the test split, once, at the end."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import torch
from rich.table import Table
from torch import Tensor

from src.ground import runtime
from src.ground.params import Params
from src.ground.seeding import generator
from src.ground.settings import Network, Protocol
from src.io import artifacts, cost, files, progress, tracking, workers
from src.io.artifacts import Statistics, SyntheticSet
from src.io.progress import Advance
from src.io.workers import Array
from src.maths import networks, protocol, scores
from src.maths.derivatives import forward_flops
from src.maths.networks import FlatNetwork, ImageShape
from src.maths.protocol import Gradients, Way
from src.stages import run_log
from src.stages.records import synthetic_settings

SPLITS = ("val", "test")


@dataclass(frozen=True)
class Training:
    """What the training of every student takes, in whatever process."""

    dataset: str
    settings: Protocol
    spec: Network
    shape: ImageShape
    seed: int
    way: Way
    images: Array  # (S, C, H, W), synthetic
    labels: Array  # (S,)
    syn_lr: float


def run(params: Params, name: str) -> None:
    """Evaluate the run `name`."""
    settings = params.run(name)
    device = runtime.start(params.runtime)
    statistics = artifacts.load_statistics(settings.dataset)
    path = artifacts.synthetic_file(name)
    artifacts.check_record(path, synthetic_settings(params, name), artifacts.remake("distill", name))
    synthetic = artifacts.load_synthetic(name)
    protocol_settings = {"protocol": settings.evaluate, **params.evaluate[settings.evaluate].model_dump()}
    find, add = {"ast.synthetic": files.digest(path)}, {"ast.evaluation": tracking.fingerprint(protocol_settings)}
    with tracking.track(settings.dataset, name, "run", find, add) as tracker:
        tracker.params({"evaluate": protocol_settings})
        run_log.describe(tracker, params, name)
        run_log.log_outputs(tracker, params, name)
        with cost.measured(device) as spent:
            predicted, peak = predict_all(params, name, synthetic, statistics, device)
        spent.peak_memory_mib = max(spent.peak_memory_mib, peak)
        labels = {split: artifacts.load_split(settings.dataset, split).labels for split in SPLITS}
        students = _accuracies(predicted, labels)
        summary = _summary(students)
        _save(name, students, summary, predicted["test"], labels["test"], statistics)
        cost.keep(artifacts.metrics_file(name), spent)
        _log(tracker, params, name, summary)
    _show(name, summary)


def predict_all(
    params: Params, name: str, synthetic: SyntheticSet, statistics: Statistics, device: torch.device
) -> tuple[dict[str, Tensor], float]:
    """Each split's classes (G, N) as predicted by students trained to the end, and the largest memory of a process in MiB."""
    run = params.runs[name]
    settings, spec = params.evaluate[run.evaluate], params.networks[run.network]
    space, forward = artifacts.load_space(run.dataset), _forward_flops(spec, statistics.shape)
    way = protocol.choose(params.runtime, device, settings, len(synthetic.labels), forward)
    if way.note:
        progress.say(f"{name}: {way.note}")
    training = Training(
        run.dataset, settings, spec, statistics.shape, params.seed, way,
        space.normalise(synthetic.pixels).numpy(), synthetic.labels.numpy(), synthetic.syn_lr.item(),
    )  # fmt: skip
    groups = 1 if way.together else settings.students
    processes = workers.processes(params.runtime, device, groups, way.flops)
    work = functools.partial(_train_group, training)
    found, peak = workers.each(work, groups, params.runtime, processes, f"evaluate {name}", groups * settings.epochs)
    return {split: torch.cat([torch.from_numpy(group[split]) for group in found]) for split in SPLITS}, peak


def _forward_flops(spec: Network, shape: ImageShape) -> int:
    """Floating-point operations of one image's forward pass."""
    network = FlatNetwork(networks.build(spec, shape, torch.Generator()))
    return forward_flops(network, torch.zeros(network.dimension), torch.zeros(1, shape.channels, shape.size, shape.size))


def _train_group(training: Training, index: int, device: torch.device, advance: Advance) -> dict[str, Array]:
    """Train one student or all, wherever joblib puts them; the classes (g, N) they then predict of each split."""
    seed, shape = training.seed, training.shape
    group = range(training.settings.students) if training.way.together else (index,)
    fresh = [networks.build(training.spec, shape, generator(seed, "evaluate", s, "initialisation")) for s in group]
    thetas = torch.stack([networks.flatten(student) for student in fresh]).to(device)  # (g, P)
    draws = [generator(seed, "evaluate", student, "training") for student in group]
    images, labels = (torch.from_numpy(array).to(device) for array in (training.images, training.labels))
    network, gradients = _derivative(training.spec, shape, device, training.way)
    trained = protocol.train_students(
        network, thetas, images, labels, training.syn_lr, training.settings, draws, advance, gradients
    )
    return {split: _predict(training, split, network, trained) for split in SPLITS}


@functools.cache
def _derivative(spec: Network, shape: ImageShape, device: torch.device, way: Way) -> tuple[FlatNetwork, Gradients]:
    """The network as a function and its derivative; a process compiles it once for all students it trains."""
    network = FlatNetwork(networks.build(spec, shape, torch.Generator()).to(device))
    return network, protocol.derivative(network, way)


def _predict(training: Training, split: str, network: FlatNetwork, thetas: Tensor) -> Array:
    """Predicted classes (g, N) of every student."""
    images = artifacts.load_inputs(training.dataset, split)[0].to(thetas.device)
    return torch.stack([scores.predictions(functools.partial(network, theta), images) for theta in thetas]).cpu().numpy()


def _accuracies(predicted: dict[str, Tensor], labels: dict[str, Tensor]) -> list[dict[str, Any]]:
    return [
        {"student": student, **{f"{s}_accuracy": scores.accuracy(predicted[s][student], labels[s]) for s in SPLITS}}
        for student in range(len(predicted["test"]))
    ]


def _summary(students: list[dict[str, Any]]) -> dict[str, float]:
    """Mean and standard deviation over the students, as fractions."""
    summary: dict[str, float] = {}
    for split in SPLITS:
        mean, std = scores.mean_and_std([student[f"{split}_accuracy"] for student in students])
        summary |= {f"{split}_accuracy_mean": mean, f"{split}_accuracy_std": std}
    return summary


def _save(
    name: str,
    students: list[dict[str, Any]],
    summary: dict[str, float],
    predicted: Tensor,
    labels: Tensor,
    statistics: Statistics,
) -> None:
    """Predictions are the first student's, for DVC's confusion plot."""
    classes = statistics.classes
    pairs = zip(labels.tolist(), predicted[0].tolist(), strict=True)
    files.write_csv(artifacts.predictions_file(name), [{"actual": classes[a], "predicted": classes[p]} for a, p in pairs])
    files.write_csv(artifacts.students_file(name), students)
    files.write_json(artifacts.metrics_file(name), summary)


def _log(tracker: tracking.Tracker, params: Params, name: str, summary: dict[str, float]) -> None:
    tracker.metrics(summary)
    run_log.log_cost(tracker, "evaluate", cost.lookup(artifacts.metrics_file(name)))
    tracker.dataset(params.runs[name].dataset, artifacts.split_file(params.runs[name].dataset, "test"), "testing")
    for path in (artifacts.metrics_file(name), artifacts.students_file(name), artifacts.predictions_file(name)):
        tracker.file(path, "evaluate")
        tracker.output(path)


def _show(name: str, summary: dict[str, float]) -> None:
    table = Table("split", "accuracy, mean", "std", title=name, title_justify="left")
    for split, label in (("val", "validation"), ("test", "test")):
        table.add_row(label, f"{summary[f'{split}_accuracy_mean']:.1%}", f"{summary[f'{split}_accuracy_std']:.1%}")
    progress.console.print(table)
