"""experts: networks trained on the real training split -> the expert buffer, one trajectory a file, and its curves."""

from __future__ import annotations

import statistics as numbers
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from src.ground import runtime
from src.ground.params import Params
from src.ground.seeding import generator
from src.io import artifacts, cost, files, progress, tracking
from src.io.artifacts import Record, Statistics
from src.maths import expert_training, networks, scores, smoothness
from src.stages import run_log
from src.stages.records import experts_record


def run(params: Params, name: str) -> None:
    """Train the experts `name`."""
    settings = params.expert_set(name)
    device = runtime.start(params.runtime)
    statistics = artifacts.load_statistics(settings.dataset)
    record = experts_record(params, name)
    find = {"ast.fingerprint": tracking.fingerprint(vars(record))}
    with tracking.track(settings.dataset, f"experts/{name}", "experts", find) as tracker:
        tracker.params({"experts": settings.model_dump(), "network": params.networks[settings.network].model_dump()})
        tracker.dataset(settings.dataset, artifacts.split_file(settings.dataset, "train"), "training")
        with cost.measured(device) as spent:
            rows = _train_all(params, name, statistics, record, device)
        files.write_csv(artifacts.expert_curves_file(name), rows)
        _forget_others(name, settings.count)
        cost.keep(artifacts.trajectories_folder(name), spent)
        run_log.log_experts(tracker, name, rows, spent)
    final = [row["val_accuracy"] for row in rows if row["epoch"] == settings.epochs]
    progress.say(f"{name}: {settings.count} experts, validation accuracy {numbers.mean(final):.1%}")


def _train_all(params: Params, name: str, statistics: Statistics, record: Record, device: torch.device) -> list[dict[str, Any]]:
    """Train every expert and save its trajectory as soon as it is whole; returns the curves' rows."""
    settings = params.experts[name]
    splits = {split: artifacts.load_split(settings.dataset, split) for split in ("train", "val")}
    data = {k: (statistics.normalised(v).to(device), v.labels.to(device)) for k, v in splits.items()}
    rows: list[dict[str, Any]] = []
    with progress.progress(f"experts {name}", settings.count * settings.epochs) as advance:
        for index in range(settings.count):
            thetas, curves = [], []
            for theta, row in _train_one(params, name, index, statistics, data):
                thetas.append(theta)
                curves.append(row)
                if row["epoch"]:
                    advance(f"validation {row['val_accuracy']:.1%}")
            trajectory = torch.stack(thetas)  # (T + 1, P)
            artifacts.save_trajectory(name, index, trajectory, record)
            for row, step in zip(curves[1:], smoothness.parameter_steps(trajectory).tolist(), strict=True):
                rows.append({**row, "parameter_step": step})
    return rows


def _train_one(
    params: Params, name: str, index: int, statistics: Statistics, data: dict[str, tuple[Tensor, Tensor]]
) -> Iterator[tuple[Tensor, dict[str, Any]]]:
    """Snapshots of one expert, from the initialisation on, each with a row of figures."""
    settings = params.experts[name]
    spec = params.networks[settings.network]
    images, labels = data["train"]
    network = networks.build(spec, statistics.shape, generator(params.seed, "experts", index, "initialisation"))
    network = network.to(images.device)
    for epoch in expert_training.train(network, images, labels, settings, generator(params.seed, "experts", index, "training")):
        accuracy = scores.accuracy(scores.predictions(network, data["val"][0]), data["val"][1])
        figures = {"train_loss": epoch.train_loss, "gradient_penalty": epoch.penalty, "val_accuracy": accuracy}
        yield epoch.theta.cpu(), {"expert": index, "epoch": epoch.number, **figures}


def _forget_others(name: str, count: int) -> None:
    """Delete trajectories that an earlier, larger buffer of this name left behind."""
    keep = {artifacts.trajectory_file(name, index) for index in range(count)}
    for path in artifacts.trajectories_folder(name).iterdir():
        if path not in keep:
            path.unlink()
