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
from src.io import artifacts, checkpoints, cost, files, progress, stopping, tracking, workers
from src.io.artifacts import Statistics, SyntheticSet
from src.io.checkpoints import Stored, Work
from src.io.progress import Advance
from src.io.workers import Array
from src.maths import networks, protocol, scores
from src.maths.derivatives import Logits, forward_flops
from src.maths.networks import FlatNetwork, ImageShape
from src.maths.protocol import Gradients, Students, Way
from src.stages import run_log, work
from src.stages.records import students_record, synthetic_settings

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
    work: Work


def run(params: Params, name: str) -> None:
    """Evaluate the run `name`, from its students' checkpoints where there are any."""
    params.run(name)
    with checkpoints.at_work("evaluate", name):
        _run(params, name)


def _run(params: Params, name: str) -> None:
    settings = params.runs[name]
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
    checkpoints.forget("evaluate", name)
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
        work.of(params, "evaluate", name, students_record(params, name), device, way.compiled),
    )  # fmt: skip
    groups = 1 if way.together else settings.students
    processes = workers.processes(params.runtime, device, groups, way.flops)
    units, before = groups * settings.epochs, _epochs_before(training, groups)
    if before:
        progress.say(f"{name}: resumed at {before} of {units} epochs")
    train_group = functools.partial(_train_group, training)
    found, peak = workers.each(train_group, groups, params.runtime, processes, f"evaluate {name}", units, before)
    return {split: torch.cat([torch.from_numpy(group[split]) for group in found]) for split in SPLITS}, peak


def _forward_flops(spec: Network, shape: ImageShape) -> int:
    """Floating-point operations of one image's forward pass."""
    network = FlatNetwork(networks.build(spec, shape, torch.Generator()))
    return forward_flops(network, torch.zeros(network.dimension), torch.zeros(1, shape.channels, shape.size, shape.size))


def _epochs_before(training: Training, groups: int) -> int:
    """Epochs of all students that earlier processes finished."""
    return sum(training.work.checkpoint(group).facts().get("epochs", 0) for group in range(groups))


def _train_group(training: Training, index: int, device: torch.device, advance: Advance) -> dict[str, Array]:
    """Train one student or all, wherever joblib puts them; the classes (g, N) they then predict of each split.

    What an earlier process finished is kept, and what it began is continued.
    """
    checkpoint = training.work.checkpoint(index)
    stored = checkpoint.load()
    if stored is not None and "thetas" not in stored[0]:
        return {split: stored[0][split].numpy() for split in SPLITS}
    images, labels = (torch.from_numpy(array).to(device) for array in (training.images, training.labels))
    network, gradients = _derivative(training.spec, training.shape, device, training.way)
    students = _resumed(stored, device) if stored else _first(training, index, device)
    with checkpoint.kept() as keep:
        for students in protocol.epochs(students, images, labels, training.syn_lr, training.settings, gradients):  # noqa: B020
            keep(functools.partial(_stored, students))
            advance()
        predicted = {split: _predict(training, split, network, students.thetas) for split in SPLITS}
    checkpoint.save(predicted, {"epochs": students.epochs})
    return {split: classes.numpy() for split, classes in predicted.items()}


def _first(training: Training, index: int, device: torch.device) -> Students:
    """One student or all before their first epoch."""
    seed, group = training.seed, range(training.settings.students) if training.way.together else (index,)
    fresh = [networks.build(training.spec, training.shape, generator(seed, "evaluate", s, "initialisation")) for s in group]
    thetas = torch.stack([networks.flatten(student) for student in fresh]).to(device)  # (g, P)
    return protocol.start(thetas, [generator(seed, "evaluate", student, "training") for student in group])


def _stored(students: Students) -> Stored:
    return {"thetas": students.thetas, "momenta": students.momenta, "draws": students.draws}, {"epochs": students.epochs}


def _resumed(stored: Stored, device: torch.device) -> Students:
    tensors, facts = stored
    return Students(tensors["thetas"].to(device), tensors["momenta"].to(device), tensors["draws"], facts["epochs"])


@functools.cache
def _derivative(spec: Network, shape: ImageShape, device: torch.device, way: Way) -> tuple[Logits, Gradients]:
    """The network as a function and its derivative; a process compiles it once for all students it trains."""
    network = FlatNetwork(networks.build(spec, shape, torch.Generator()).to(device))
    return stopping.interruptible(network), stopping.interruptible(protocol.derivative(network, way))


def _predict(training: Training, split: str, network: Logits, thetas: Tensor) -> Tensor:
    """Predicted classes (g, N) of every student."""
    images = artifacts.load_inputs(training.dataset, split)[0].to(thetas.device)
    return torch.stack([scores.predictions(functools.partial(network, theta), images) for theta in thetas]).cpu()


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
