"""distill: real images and the expert buffer -> a synthetic set with its learned syn_lr, its snapshots and history."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from src.ground import runtime
from src.ground.errors import DataError, DivergenceError
from src.ground.params import Params
from src.ground.seeding import generator, seed_of
from src.ground.settings import Distillation
from src.io import artifacts, cost, files, progress, tracking
from src.io.artifacts import Snapshots, Statistics, SyntheticSet
from src.io.tracking import Tracker
from src.maths import distillation, initialisation, networks
from src.maths.derivatives import PASSES, Derivatives, forward_flops
from src.maths.distillation import Figures, Start, State
from src.maths.networks import FlatNetwork
from src.stages import run_log
from src.stages.records import experts_record, synthetic_record

Watch = Callable[[int, SyntheticSet], None]  # what has become of the set by an iteration at which snapshots are kept

HISTORY_COLUMNS = ("iteration", "matching_loss", "syn_lr")  # of a run that is not distilled: its table is empty


@dataclass
class History:
    """What the outer loop leaves behind beside its last state."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    snapshots: dict[int, Tensor] = field(default_factory=dict)  # iteration -> pixels (S, C, H, W)


def run(params: Params, name: str, watch: Watch = lambda iteration, synthetic: None) -> None:
    """Distil the run `name`. An error of `watch` ends it, and nothing is saved."""
    settings, distil = params.run(name), params.distillations[name]
    device = runtime.start(params.runtime)
    statistics = artifacts.load_statistics(settings.dataset)
    expert_settings = params.experts[settings.experts]
    artifacts.check_trajectories(settings.experts, expert_settings.count, experts_record(params, settings.experts))
    record = synthetic_record(params, name)
    images, labels = _initial_images(params, name, statistics, device)
    _check_batch(name, distil, len(labels))

    find = {"ast.fingerprint": tracking.fingerprint(vars(record))}
    with tracking.track(settings.dataset, name, "run", find) as tracker:
        run_log.describe(tracker, params, name)
        with cost.measured(device) as spent:
            state, history = _optimise(params, name, statistics, images, labels, tracker, watch)
        _save(name, state, history, labels, record)
        cost.keep(artifacts.synthetic_file(name), spent)
        run_log.log_outputs(tracker, params, name)
    progress.say(f"{name}: {len(labels)} synthetic images, syn_lr {state.syn_lr.item():.4g}, in {spent.seconds:.0f} s")


def _initial_images(params: Params, name: str, statistics: Statistics, device: torch.device) -> tuple[Tensor, Tensor]:
    """Images (S, C, H, W) and labels (S,) before the first iteration, on the device."""
    run, distil, classes = params.runs[name], params.distillations[name], len(statistics.classes)
    real, real_labels = artifacts.load_inputs(run.dataset, "train")
    if run.ipc == "all":
        return real.to(device), real_labels.to(device)
    initialisation.check_ipc(run.ipc, statistics.counts["train"], f"runs.{name}.ipc")
    labels = initialisation.synthetic_labels(classes, run.ipc)
    draws = generator(params.seed, "distill", "initialisation")
    if distil.initialisation == "noise":
        return torch.randn(len(labels), *real.shape[1:], generator=draws).to(device), labels.to(device)
    if distil.initialisation == "random":
        chosen = initialisation.random_indices(real_labels, classes, run.ipc, draws)
    else:
        chosen = _chosen_by_expert(params, name, statistics, real, real_labels)
    return real[chosen].to(device), labels.to(device)


def _chosen_by_expert(params: Params, name: str, statistics: Statistics, real: Tensor, labels: Tensor) -> Tensor:
    """Indices (S,) of the real images that stand for the others in the eyes of the first expert at its last epoch."""
    run, kind, classes = params.runs[name], params.distillations[name].initialisation, len(statistics.classes)
    assert run.ipc != "all"
    points = _seen_by_expert(params, name, statistics, real, embeddings=kind != "representative")
    if kind == "herding":
        return initialisation.herding_indices(points, labels, classes, run.ipc)
    if kind == "k_center":
        return initialisation.k_center_indices(points, labels, classes, run.ipc)
    seed = seed_of(params.seed, "distill", "k-means")
    return initialisation.representative_indices(points, labels, classes, run.ipc, seed)


def _seen_by_expert(params: Params, name: str, statistics: Statistics, real: Tensor, embeddings: bool) -> Tensor:
    """Logits (N, K) of the first expert at its last epoch, or what its last layer reads (N, F)."""
    run = params.runs[name]
    last = params.experts[run.experts].last_epoch
    theta = artifacts.read_snapshots(run.experts, 0, last, last + 1)[0]
    network = _network(params, name, statistics, torch.device("cpu"))
    look = network.features if embeddings else network
    with torch.no_grad():
        return torch.cat([look(theta, chunk) for chunk in real.split(1024)])


def _network(params: Params, name: str, statistics: Statistics, device: torch.device) -> FlatNetwork:
    """The run's network as a function; its own parameters are never used."""
    spec = params.networks[params.runs[name].network]
    return FlatNetwork(networks.build(spec, statistics.shape, torch.Generator()).to(device))


def _check_batch(name: str, distil: Distillation, count: int) -> None:
    if distil.iterations and distil.batch_syn is not None and distil.batch_syn > count:
        raise DataError(
            f"runs.{name}.distill.batch_syn: {distil.batch_syn} exceeds the {count} synthetic images: "
            "lower it, or set null for all"
        )


def _optimise(
    params: Params, name: str, statistics: Statistics, images: Tensor, labels: Tensor, tracker: Tracker, watch: Watch
) -> tuple[State, History]:
    """The outer loop; every iteration draws from its own generator."""
    distil = params.distillations[name]
    network = _network(params, name, statistics, images.device)
    derivatives = _derivatives(params, name, network, images)
    state, history, space = distillation.start(images, distil), History(), artifacts.load_space(params.runs[name].dataset)
    moments = _moments(distil)
    with progress.progress(f"distill {name}", distil.iterations) as advance:
        for iteration in range(distil.iterations + 1):
            if iteration in moments:
                history.snapshots[iteration] = space.to_pixels(state.images.cpu())
                run_log.log_images(tracker, history.snapshots[iteration], labels, iteration)
                watch(iteration, SyntheticSet(history.snapshots[iteration], labels.cpu(), state.syn_lr.cpu()))
            if iteration < distil.iterations:
                state, row = _iterate(params, name, network, derivatives, state, labels, iteration)
                history.rows.append(row)
                run_log.log_row(tracker, row)
                advance(f"matching loss {row['matching_loss']:.4f}, syn_lr {row['syn_lr']:.4f}")
    return state, history


def _derivatives(params: Params, name: str, network: FlatNetwork, images: Tensor) -> Derivatives:
    """Compiled where the run is long enough to pay for it."""
    distil = params.distillations[name]
    batch = min(distil.batch_syn or len(images), len(images))
    theta = torch.zeros(network.dimension, device=images.device)
    passes = PASSES * distil.iterations * distil.syn_steps * distil.trajectories_per_iteration * batch
    compiled, reason = runtime.compiles(params.runtime, passes * forward_flops(network, theta, images[:1]))
    if reason:
        progress.say(f"{name}: {reason}")
    return Derivatives(network, params.runtime.precision == "bfloat16", compiled)


def _moments(distil: Distillation) -> set[int]:
    """Iterations at which images are kept: evenly spaced, first and last among them."""
    return {round(distil.iterations * i / (distil.snapshots - 1)) for i in range(distil.snapshots)}


def _iterate(
    params: Params,
    name: str,
    network: FlatNetwork,
    derivatives: Derivatives,
    state: State,
    labels: Tensor,
    iteration: int,
) -> tuple[State, dict[str, Any]]:
    run, distil = params.runs[name], params.distillations[name]
    draws = generator(params.seed, "distill", "iteration", iteration)
    count = params.experts[run.experts].count
    drawn = [distillation.draw_start(count, distil, draws) for _ in range(distil.trajectories_per_iteration)]
    starts = [
        Start(artifacts.read_snapshots(run.experts, expert, epoch, epoch + distil.expert_epochs + 1).to(labels.device), epoch)
        for expert, epoch in drawn
    ]
    experts, epochs = (" ".join(str(number) for number in column) for column in zip(*drawn, strict=True))
    try:
        state, figures = distillation.iterate(network, derivatives, state, labels, starts, distil, draws)
    except DivergenceError as error:
        raise DivergenceError(
            f"run {name} diverged at iteration {iteration} (expert {experts}, start epoch {epochs}): {error}"
        ) from None
    return state, {"iteration": iteration, "expert": experts, "start_epoch": epochs, **_row(figures)}


def _row(figures: Figures) -> dict[str, float]:
    way_points = {f"way_point_{k}": value for k, value in enumerate(figures.terms, start=1)}
    return {
        "matching_loss": figures.matching_loss,
        **way_points,
        "syn_lr": figures.syn_lr,
        "grad_norm_images": figures.grad_norm_images,
        "grad_norm_syn_lr": figures.grad_norm_syn_lr,
    }


def _save(name: str, state: State, history: History, labels: Tensor, record: artifacts.Record) -> None:
    pixels = history.snapshots.pop(0) if not history.rows else history.snapshots[len(history.rows)]  # (S, C, H, W)
    moments = [*history.snapshots.values()]  # none of a set that is not distilled
    kept = Snapshots(torch.tensor([*history.snapshots]).long(), torch.stack(moments) if moments else pixels.new_empty(0))
    artifacts.save_snapshots(name, kept, artifacts.Record("snapshots", record.settings, record.inputs))
    files.write_csv(artifacts.history_file(name), history.rows, HISTORY_COLUMNS)
    artifacts.save_synthetic(name, SyntheticSet(pixels, labels, state.syn_lr), record)
