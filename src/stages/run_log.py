"""What MLflow holds of experts and of a named run: one row has its parameters, curves, pictures, accuracies and cost together.

`distill` logs while it works; `evaluate` completes the row, and makes it whole where the synthetic set came from DVC's
cache and never passed through this store. Points that are there already are not logged again.
"""

from __future__ import annotations

import math
import statistics
from typing import Any

import torch
from torch import Tensor

from src.maths.networks import TupleShape
from src.pages import page, pictures
from src.settings.resolved import Run
from src.stages import tuples
from src.store import cost, files
from src.store.store import Store, remake
from src.tracking.tracker import Tracker, fingerprint

NOT_CURVES = ("iteration", "expert", "start_epoch")
PICTURE = 3  # dimensions of an item that can be shown: channels, height, width


def protocol(run: Run) -> dict[str, Any]:
    """The parameters of a run's evaluation."""
    return {"protocol": run.protocol, **run.evaluation.model_dump()}


def protocol_tags(run: Run) -> dict[str, str]:
    """By which the row of a synthetic set is told from that of the same set under another protocol."""
    return {"ast.evaluation": fingerprint(protocol(run)), "ast.scored": run.evaluation.scored}


def describe(tracker: Tracker, store: Store, run: Run) -> None:
    """Parameters of everything up to the synthetic set, inputs and links."""
    dataset, buffer = run.dataset.name, run.buffer
    own = {"dataset": dataset, "network": run.network, "experts": None if buffer is None else buffer.name, "ipc": run.ipc}
    tracker.params({"seed": run.seed, "run": own, "distill": {"method": run.method, **run.distillation.model_dump()}})
    if buffer is not None:
        tracker.params({"experts": buffer.settings.model_dump()})
        tracker.link_experts(dataset, buffer.name, store.trajectories_folder(buffer.name))
    tracker.params({"network": run.spec.model_dump()})
    tracker.dataset(dataset, store.split_file(dataset, "train"), "training")


def log_row(tracker: Tracker, row: dict[str, Any]) -> None:
    """The figures of one iteration."""
    figures = {key: float(value) for key, value in row.items() if key not in NOT_CURVES}
    tracker.metrics(figures, int(row["iteration"]))


def log_images(tracker: Tracker, pixels: Tensor, labels: Tensor, iteration: int, tuples: TupleShape | None = None) -> None:
    """The synthetic images (S, C, H, W) of one iteration; of tuples (S, D) the images and spectrograms."""
    if tuples is None:
        tracker.image("synthetic", pictures.grid(pixels, labels.cpu(), square=True), iteration)
        return
    for one, own in zip(tuples.modalities, pixels.split(tuples.sizes, dim=1), strict=True):
        if len(one.shape) == PICTURE:
            shown = pictures.grid(own.unflatten(1, one.shape), torch.arange(len(own)), square=True)
            tracker.image(f"synthetic-{one.name}", shown, iteration)


def log_outputs(tracker: Tracker, store: Store, run: Run) -> None:
    """Whatever `distill` left on disk: curves, pictures, files with their digests, cost."""
    name = run.name
    path, remedy = store.history_file(name), remake("distill", name)
    rows = files.read_csv(path, remedy)
    with files.understood(path, remedy):
        for row in rows:
            log_row(tracker, row)
    snapshots, synthetic = store.load_snapshots(name), store.load_synthetic(name)
    moments = list(zip(snapshots.iterations.tolist(), snapshots.pixels, strict=True))
    shape = store.load_statistics(run.dataset.name).shape
    for iteration, pixels in moments or [(0, synthetic.pixels)]:
        log_images(tracker, pixels, synthetic.labels, iteration, shape if isinstance(shape, TupleShape) else None)
    if rows:
        _log_figure(tracker, rows, run.distillation.loss)
    for path in (store.synthetic_file(name), store.snapshots_file(name), store.history_file(name)):
        tracker.file(path, "distill")
        tracker.output(path)
    tracker.tags({"ast.synthetic": files.digest(store.synthetic_file(name))})
    log_cost(tracker, "distill", cost.lookup(store.synthetic_file(name)))
    if run.buffer is not None:
        log_cost(tracker, "experts", cost.lookup(store.trajectories_folder(run.buffer.name)))


def log_tuples(tracker: Tracker, store: Store, run: Run) -> None:
    """A page of synthetic tuples, with what can be heard of them, and of recall; nothing of images in classes."""
    if run.dataset.tuples:
        tracker.page("tuples.html", page.filled(page.TUPLES, tuples=[tuples.shown(store, run)]))


def log_cost(tracker: Tracker, what: str, spent: cost.Cost | None) -> None:
    if spent is not None:
        tracker.metrics({f"cost/{what}_seconds": spent.seconds, f"cost/{what}_peak_memory_mib": spent.peak_memory_mib})


def _log_figure(tracker: Tracker, rows: list[dict[str, str]], loss: str) -> None:
    iterations = [int(row["iteration"]) for row in rows]
    lines = {loss: [float(row["matching_loss"]) for row in rows]}
    tracker.curve("figures/matching_loss.png", iterations, lines, ("iteration", loss))


def _known(figures: dict[str, float]) -> dict[str, float]:
    """Those that are numbers: of imported experts some are not known."""
    return {key: value for key, value in figures.items() if math.isfinite(value)}


def headline(rows: list[dict[str, Any]]) -> str:
    """The figure that an expert's rows tell of the validation split: accuracy, or what its task has instead."""
    return next(key.removeprefix("val_") for key in rows[0] if key.startswith("val_"))


def log_experts(tracker: Tracker, store: Store, name: str, rows: list[dict[str, Any]], spent: cost.Cost) -> None:
    """Curves of every expert and of their mean, the smoothness figure, the buffer's digest, cost."""
    epochs, curves = sorted({row["epoch"] for row in rows}), [key for key in rows[0] if key not in ("expert", "epoch")]
    means = {key: [statistics.mean(row[key] for row in rows if row["epoch"] == epoch) for epoch in epochs] for key in curves}
    for position, epoch in enumerate(epochs):
        tracker.metrics(_known({key: values[position] for key, values in means.items()}), epoch)
    for row in rows:
        figures = {f"{key}/expert-{row['expert']:03d}": row[key] for key in curves}
        tracker.metrics(_known(figures), row["epoch"])
    lines = {"mean": means["parameter_step"]}
    tracker.curve("figures/smoothness.png", epochs, lines, ("epoch", "squared parameter step"), log=True)
    tracker.file(store.expert_curves_file(name))
    tracker.output(store.trajectories_folder(name))
    tracker.tags({"ast.buffer": files.digest(store.trajectories_folder(name))})
    log_cost(tracker, "experts", spent)
