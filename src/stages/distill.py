"""distill: real images and the expert buffer -> a synthetic set with its learned syn_lr, its snapshots and history."""

from __future__ import annotations

import torch
from torch import Tensor

from src.ground import runtime
from src.ground.errors import DataError
from src.ground.seeding import generator, seed_of
from src.maths import initialisation, networks
from src.maths.derivatives import PASSES, Derivatives
from src.maths.networks import FlatNetwork
from src.process import progress, stopping
from src.settings.distillation import Distillation
from src.settings.resolved import Run
from src.stages import outer_loop, run_log, work
from src.stages.outer_loop import Distilling, Loop, Watch
from src.stages.records import experts_record, iterations_record, prepared, synthetic_record
from src.store import checkpoints, cost, files
from src.store.checkpoints import Checkpoint
from src.store.cost import Cost
from src.store.store import Store
from src.store.values import Record, Snapshots, Statistics, SyntheticSet
from src.tracking import tracker as tracking
from src.tracking.tracker import Tracker

HISTORY_COLUMNS = ("iteration", "matching_loss", "syn_lr")  # of a run that is not distilled: its table is empty


def run(store: Store, run: Run, watch: Watch = outer_loop.unwatched) -> None:
    """Distil a run, from its checkpoint where there is one. An error of `watch` ends it, and nothing is saved.

    The checkpoint stays, so that the run goes on from there when `iterations` grows.
    """
    with checkpoints.at_work("distill", run.name):
        _run(store, run, watch)


def _run(store: Store, run: Run, watch: Watch) -> None:
    name, buffer = run.name, run.buffer
    device = work.start(run.runtime, name)
    statistics = prepared(store, run.dataset, "train")
    if buffer is not None:
        store.check_trajectories(buffer.name, buffer.settings.count, experts_record(store, buffer))
    record = work.whole(synthetic_record(store, run), run.runtime, "distill", device)
    images, labels = _initial_images(store, run, statistics, device)
    _check_batch(name, run.distillation, len(labels))

    find = {"ast.fingerprint": tracking.fingerprint(vars(record))}
    with tracking.track(run.dataset.name, name, "run", find) as tracker:
        run_log.describe(tracker, store, run)
        with cost.measured(device) as spent:
            ended, checkpoint = _optimise(store, run, statistics, images, labels, record, tracker, watch)
        spent.add(Cost(checkpoint.seconds_before))
        _save(store, name, ended, labels, record)
        cost.keep(store.synthetic_file(name), spent)
        run_log.log_outputs(tracker, store, run)
    if ended.iteration:
        checkpoint.save(*ended.stored())
    progress.say(f"{name}: {len(labels)} synthetic images, syn_lr {ended.state.syn_lr.item():.4g}, in {spent.seconds:.0f} s")


def _initial_images(store: Store, run: Run, statistics: Statistics, device: torch.device) -> tuple[Tensor, Tensor]:
    """Images (S, C, H, W) and labels (S,) before the first iteration, on the device."""
    classes, chosen_by = len(statistics.classes), run.distillation.initialisation
    real, real_labels = store.load_inputs(run.dataset.name, "train")
    if run.ipc == "all":
        return real.to(device), real_labels.to(device)
    initialisation.check_ipc(run.ipc, statistics.counts["train"], f"runs.{run.name}.ipc")
    labels = initialisation.synthetic_labels(classes, run.ipc)
    draws = generator(run.seed, "distill", "initialisation")
    if chosen_by == "noise":
        return torch.randn(len(labels), *real.shape[1:], generator=draws).to(device), labels.to(device)
    if chosen_by == "random":
        chosen = initialisation.random_indices(real_labels, classes, run.ipc, draws)
    else:
        chosen = _chosen_by_expert(store, run, statistics, real, real_labels)
    return real[chosen].to(device), labels.to(device)


def _chosen_by_expert(store: Store, run: Run, statistics: Statistics, real: Tensor, labels: Tensor) -> Tensor:
    """Indices (S,) of the real images that stand for the others in the eyes of the first expert at its last epoch."""
    kind, classes = run.distillation.initialisation, len(statistics.classes)
    assert run.ipc != "all"
    points = _seen_by_expert(store, run, statistics, real, embeddings=kind != "representative")
    if kind == "herding":
        return initialisation.herding_indices(points, labels, classes, run.ipc)
    if kind == "k_center":
        return initialisation.k_center_indices(points, labels, classes, run.ipc)
    seed = seed_of(run.seed, "distill", "k-means")
    return initialisation.representative_indices(points, labels, classes, run.ipc, seed)


def _seen_by_expert(store: Store, run: Run, statistics: Statistics, real: Tensor, embeddings: bool) -> Tensor:
    """Logits (N, K) of the first expert at its last epoch, or what its last layer reads (N, F)."""
    last = run.experts.settings.last_epoch
    theta = store.read_snapshots(run.experts.name, 0, last, last + 1)[0]
    network = _network(run, statistics, torch.device("cpu"))
    look = network.features if embeddings else network
    with torch.no_grad():
        return torch.cat([look(theta, chunk) for chunk in real.split(1024)])


def _network(run: Run, statistics: Statistics, device: torch.device) -> FlatNetwork:
    """The run's network as a function; its own parameters are never used."""
    return FlatNetwork(networks.build(run.spec, statistics.shape, torch.Generator()).to(device))


def _check_batch(name: str, distil: Distillation, count: int) -> None:
    if distil.iterations and distil.batch_syn is not None and distil.batch_syn > count:
        raise DataError(
            f"runs.{name}.distill.batch_syn: {distil.batch_syn} exceeds the {count} synthetic images: "
            "lower it, or set null for all"
        )


def _optimise(
    store: Store,
    run: Run,
    statistics: Statistics,
    images: Tensor,
    labels: Tensor,
    record: Record,
    tracker: Tracker,
    watch: Watch,
) -> tuple[Distilling, Checkpoint]:
    """The outer loop; every iteration draws from its own generator."""
    network = _network(run, statistics, images.device)
    derivatives, compiled = _derivatives(run, network, images)
    name, space = run.name, store.load_space(run.dataset.name)
    loop = Loop(store, run, network, derivatives, labels, space)
    checkpoint = work.of(run.runtime, "distill", name, iterations_record(record), run.spec, compiled).checkpoint()
    at = outer_loop.resumed(loop, checkpoint.load()) or outer_loop.first(loop, images)
    if at.iteration:
        progress.say(f"{name}: resumed at iteration {at.iteration} of {loop.distil.iterations}")
    return outer_loop.run(loop, at, checkpoint, tracker, watch), checkpoint


def _derivatives(run: Run, network: FlatNetwork, images: Tensor) -> tuple[Derivatives, bool]:
    """Compiled where the run is long enough to pay for it; and whether they are."""
    distil, asked = run.distillation, run.runtime
    batch = min(distil.batch_syn or len(images), len(images))
    passes = PASSES * distil.iterations * distil.syn_steps * distil.trajectories_per_iteration * batch
    compiled, reason = runtime.compiles(asked, passes * network.forward_flops(images[:1]))
    if reason:
        progress.say(f"{run.name}: {reason}")
    found = Derivatives(network, asked.precision == "bfloat16", compiled)
    found.first, found.second = stopping.interruptible(found.first), stopping.interruptible(found.second)
    return found, compiled


def _save(store: Store, name: str, ended: Distilling, labels: Tensor, record: Record) -> None:
    pixels, snapshots = ended.snapshots[ended.iteration], ended.snapshots if ended.rows else {}
    moments = [*snapshots.values()]  # none of a set that is not distilled
    kept = Snapshots(torch.tensor([*snapshots]).long(), torch.stack(moments) if moments else pixels.new_empty(0))
    store.save_snapshots(name, kept, record)
    files.write_csv(store.history_file(name), ended.rows, HISTORY_COLUMNS)
    store.save_synthetic(name, SyntheticSet(pixels, labels, ended.state.syn_lr), record)
