"""distill: real images and the expert buffer -> a synthetic set with its learned syn_lr, its snapshots and history."""

from __future__ import annotations

import torch
from torch import Tensor

from src.ground import runtime
from src.ground.errors import DataError
from src.ground.params import Params
from src.ground.seeding import generator, seed_of
from src.ground.settings import Distillation
from src.io import artifacts, checkpoints, cost, files, progress, stopping, tracking
from src.io.artifacts import Record, Snapshots, Statistics, SyntheticSet
from src.io.checkpoints import Checkpoint
from src.io.cost import Cost
from src.io.tracking import Tracker
from src.maths import initialisation, networks
from src.maths.derivatives import PASSES, Derivatives
from src.maths.networks import FlatNetwork
from src.stages import outer_loop, run_log, work
from src.stages.outer_loop import Distilling, Loop, Watch
from src.stages.records import experts_record, iterations_record, prepared, synthetic_record

HISTORY_COLUMNS = ("iteration", "matching_loss", "syn_lr")  # of a run that is not distilled: its table is empty


def run(params: Params, name: str, watch: Watch = outer_loop.unwatched) -> None:
    """Distil the run `name`, from its checkpoint where there is one. An error of `watch` ends it, and nothing is saved.

    The checkpoint stays, so that the run goes on from there when `iterations` grows.
    """
    params.run(name)
    with checkpoints.at_work("distill", name):
        _run(params, name, watch)


def _run(params: Params, name: str, watch: Watch) -> None:
    settings, distil = params.runs[name], params.distillations[name]
    device = work.start(params.runtime, name)
    statistics = prepared(params, settings.dataset, "train")
    if settings.experts is not None:
        count = params.experts[settings.experts].count
        artifacts.check_trajectories(settings.experts, count, experts_record(params, settings.experts))
    record = work.whole(synthetic_record(params, name), params, "distill", device)
    images, labels = _initial_images(params, name, statistics, device)
    _check_batch(name, distil, len(labels))

    find = {"ast.fingerprint": tracking.fingerprint(vars(record))}
    with tracking.track(settings.dataset, name, "run", find) as tracker:
        run_log.describe(tracker, params, name)
        with cost.measured(device) as spent:
            ended, checkpoint = _optimise(params, name, statistics, images, labels, record, tracker, watch)
        spent.add(Cost(checkpoint.seconds_before))
        _save(name, ended, labels, record)
        cost.keep(artifacts.synthetic_file(name), spent)
        run_log.log_outputs(tracker, params, name)
    if ended.iteration:
        checkpoint.save(*ended.stored())
    progress.say(f"{name}: {len(labels)} synthetic images, syn_lr {ended.state.syn_lr.item():.4g}, in {spent.seconds:.0f} s")


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
    buffer, settings = params.matched(name)
    last = settings.last_epoch
    theta = artifacts.read_snapshots(buffer, 0, last, last + 1)[0]
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
    params: Params,
    name: str,
    statistics: Statistics,
    images: Tensor,
    labels: Tensor,
    record: Record,
    tracker: Tracker,
    watch: Watch,
) -> tuple[Distilling, Checkpoint]:
    """The outer loop; every iteration draws from its own generator."""
    network = _network(params, name, statistics, images.device)
    derivatives, compiled = _derivatives(params, name, network, images)
    space = artifacts.load_space(params.runs[name].dataset)
    loop = Loop(params, name, network, derivatives, labels, space)
    checkpoint = work.of(params, "distill", name, iterations_record(record), compiled).checkpoint()
    at = outer_loop.resumed(loop, checkpoint.load()) or outer_loop.first(loop, images)
    if at.iteration:
        progress.say(f"{name}: resumed at iteration {at.iteration} of {loop.distil.iterations}")
    return outer_loop.run(loop, at, checkpoint, tracker, watch), checkpoint


def _derivatives(params: Params, name: str, network: FlatNetwork, images: Tensor) -> tuple[Derivatives, bool]:
    """Compiled where the run is long enough to pay for it; and whether they are."""
    distil = params.distillations[name]
    batch = min(distil.batch_syn or len(images), len(images))
    passes = PASSES * distil.iterations * distil.syn_steps * distil.trajectories_per_iteration * batch
    compiled, reason = runtime.compiles(params.runtime, passes * network.forward_flops(images[:1]))
    if reason:
        progress.say(f"{name}: {reason}")
    found = Derivatives(network, params.runtime.precision == "bfloat16", compiled)
    found.first, found.second = stopping.interruptible(found.first), stopping.interruptible(found.second)
    return found, compiled


def _save(name: str, ended: Distilling, labels: Tensor, record: Record) -> None:
    pixels, snapshots = ended.snapshots[ended.iteration], ended.snapshots if ended.rows else {}
    moments = [*snapshots.values()]  # none of a set that is not distilled
    kept = Snapshots(torch.tensor([*snapshots]).long(), torch.stack(moments) if moments else pixels.new_empty(0))
    artifacts.save_snapshots(name, kept, record)
    files.write_csv(artifacts.history_file(name), ended.rows, HISTORY_COLUMNS)
    artifacts.save_synthetic(name, SyntheticSet(pixels, labels, ended.state.syn_lr), record)
