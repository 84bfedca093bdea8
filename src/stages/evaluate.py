"""evaluate: a synthetic set -> accuracies of fresh students. The only stage that opens the test split, once, at the end."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from rich.table import Table
from torch import Tensor

from src.ground import runtime
from src.ground.params import Params
from src.ground.seeding import generator
from src.io import artifacts, cost, files, progress, tracking
from src.io.artifacts import Statistics, SyntheticSet
from src.maths import networks, protocol, scores
from src.maths.networks import FlatNetwork
from src.stages import run_log
from src.stages.records import synthetic_settings

SPLITS = ("val", "test")


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
        run_log.log_outputs(tracker, params, name, statistics)
        with cost.measured(device) as spent:
            network, thetas = _train_students(params, name, synthetic, statistics, device)
            predicted = {split: _predict(settings.dataset, split, statistics, network, thetas) for split in SPLITS}
        labels = {split: artifacts.load_split(settings.dataset, split).labels for split in SPLITS}
        students = _accuracies(predicted, labels)
        summary = _summary(students)
        _save(name, students, summary, predicted["test"], labels["test"], statistics)
        cost.keep(artifacts.metrics_file(name), spent)
        _log(tracker, params, name, summary)
    _show(name, summary)


def _train_students(
    params: Params, name: str, synthetic: SyntheticSet, statistics: Statistics, device: torch.device
) -> tuple[FlatNetwork, Tensor]:
    """The network as a function, and the trained students' parameters (G, P)."""
    run = params.runs[name]
    settings, spec = params.evaluate[run.evaluate], params.networks[run.network]
    fresh = [
        networks.build(spec, statistics.shape, generator(params.seed, "evaluate", student, "initialisation"))
        for student in range(settings.students)
    ]
    network = FlatNetwork(fresh[0].to(device))
    thetas = torch.stack([networks.flatten(student) for student in fresh]).to(device)  # (G, P)
    draws = [generator(params.seed, "evaluate", student, "training") for student in range(settings.students)]
    images, labels = synthetic.images.to(device), synthetic.labels.to(device)
    with progress.progress(f"evaluate {name}", settings.epochs) as advance:
        trained = protocol.train_students(
            network, thetas, images, labels, synthetic.syn_lr.item(), settings, draws, on_epoch=advance
        )
    return network, trained


def _predict(dataset: str, split: str, statistics: Statistics, network: FlatNetwork, thetas: Tensor) -> Tensor:
    """Predicted classes (G, N) of every student."""
    images = statistics.normalised(artifacts.load_split(dataset, split)).to(thetas.device)
    return torch.stack([scores.predictions(partial(network, theta), images).cpu() for theta in thetas])


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
