"""distill: real images and the expert buffer -> a synthetic set with its learned syn_lr, its snapshots and history."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from src.ground.errors import ArtifactError, UserError
from src.ground.seeding import generator
from src.loops import initial, outer
from src.loops.outer import Distilling, Loop
from src.loops.stored import Stored
from src.maths import contrast, initialisation, networks, tasks
from src.maths.derivatives import Backend
from src.maths.distillation import Real
from src.maths.networks import FlatNetwork, Shape
from src.maths.tasks import Task, Tuples
from src.process import progress, ranks, stopping
from src.process.ranks import Ranks
from src.settings.networks import Network
from src.settings.resolved import Buffer, Run
from src.stages import run_log, work
from src.stages.records import check_synthetic, experts_record, iterations_record, prepared, synthetic_record
from src.store import checkpoints, cost, files, locked
from src.store.checkpoints import Checkpoint, Work
from src.store.cost import Cost
from src.store.store import Store, read_synthetic
from src.store.values import Record, Snapshots, Statistics, SyntheticSet
from src.tracking import tracker as tracking
from src.tracking.tracker import Tracker

Watch = Callable[[int, SyntheticSet], None]  # what has become of the set by an iteration at which images are kept

Value = TypeVar("Value")

HISTORY_COLUMNS = ("iteration", "matching_loss", "syn_lr")  # of a run that is not distilled: its table is empty


def unwatched(iteration: int, synthetic: SyntheticSet) -> None:
    """No one looks on."""


def run(store: Store, run: Run, watch: Watch = unwatched) -> None:
    """Distil a run, from its checkpoint where there is one. An error of `watch` ends it, and nothing is saved.

    The checkpoint stays, so that the run goes on from there when `iterations` grows. Where it begins with the set of another
    run, which is not there as it is to be or was made by other code, that one is made first: DVC, which knows of no order, then
    has it go on at its end.
    """
    with ranks.joined(run.runtime, run.name) as group:
        if run.initial is not None:
            _ready(store, run.initial, group)
        if group is not None and group.rank:
            with stopping.heeded():
                return _follow(store, run, group)
        with checkpoints.at_work("distill", run.name):
            return _run(store, run, watch, group)


def _ready(store: Store, initial: Run, group: Ranks | None) -> None:
    if not _told(group, _is_made(store, initial)):
        progress.say(f"{initial.name} is made first")
        run(store, initial)


def _is_made(store: Store, run: Run) -> bool:
    return _is_there(store, "distill", run.name, lambda: check_synthetic(store, run))


def _is_there(store: Store, stage: str, name: str, check: Callable[[], None]) -> bool:
    """Whether what a stage makes passes this check, and was made by the code of now."""
    try:
        check()
    except ArtifactError:
        return False
    return not locked.is_outdated(store.data, stage, name)


def missing_experts(store: Store, run: Run) -> Iterator[Buffer]:
    """The experts of those runs whose sets have to be made before this one's, where they are missing or made differently."""
    if run.initial is None or _is_made(store, run.initial):
        return
    yield from missing_experts(store, run.initial)
    buffer = run.initial.buffer
    if buffer is not None and not _is_there(store, "experts", buffer.name, lambda: check_experts(store, buffer)):
        yield buffer


def _told(group: Ranks | None, value: Value) -> Value:
    """What rank 0 has, where there are several."""
    return value if group is None else group.told(value)


def _follow(store: Store, run: Run, group: Ranks) -> None:
    """Work along with rank 0, which keeps what becomes of it."""
    device = work.start(run.runtime, run.name)
    statistics = prepared(store, run.dataset, "train")
    images, labels = initial_images(store, run, statistics, device)
    initialisation.check_batch(run.distillation.batch, len(labels), f"runs.{run.name}.distill.batch_syn")
    loop, _, _ = loop_of(store, run, statistics, images, labels, group)
    at = _begun(store, run, loop, images, group.told(None))
    while at.iteration < loop.distil.iterations:
        at = outer.iterate(loop, at)


def _run(store: Store, run: Run, watch: Watch, group: Ranks | None) -> None:
    name = run.name
    device = work.start(run.runtime, name)
    statistics = prepared(store, run.dataset, "train")
    check_inputs(store, run)
    record = work.whole(synthetic_record(store, run), run.runtime, "distill", device)
    images, labels = initial_images(store, run, statistics, device)
    initialisation.check_batch(run.distillation.batch, len(labels), f"runs.{name}.distill.batch_syn")

    find = {"ast.fingerprint": tracking.fingerprint(vars(record))}
    with tracking.track(run.dataset.name, name, "run", find) as tracker:
        run_log.describe(tracker, store, run)
        with cost.measured(device) as spent:
            loop, ended, checkpoint = _optimise(store, run, statistics, images, labels, record, tracker, watch, group)
        spent.add(Cost(checkpoint.seconds_before))
        _save(store, name, ended, labels.cpu(), outer.labels(loop, ended.state).cpu(), _of_all(record, group))
        cost.keep(store.synthetic_file(name), spent)
        run_log.log_outputs(tracker, store, run)
    if ended.iteration:
        checkpoint.save(*ended.stored())
    progress.say(
        f"{name}: {len(labels)} synthetic {loop.noun}, syn_lr {ended.state.syn_lr.mean().item():.4g}, in {spent.seconds:.0f} s"
    )


def check_inputs(store: Store, run: Run) -> None:
    """Raises ArtifactError where the experts, or the set that the run begins with, are missing or made differently."""
    if run.buffer is not None:
        check_experts(store, run.buffer)
    if run.initial is not None:
        check_synthetic(store, run.initial)


def check_experts(store: Store, buffer: Buffer) -> None:
    """Raises ArtifactError where these experts are missing or made differently."""
    store.check_trajectories(buffer.name, buffer.settings.count, experts_record(store, buffer))


def initial_images(store: Store, run: Run, statistics: Statistics, device: torch.device) -> tuple[Tensor, Tensor]:
    """Images (S, C, H, W) or tuples (S, D), and labels (S,), before the first iteration, on the device."""
    real, found = store.load_real(run.dataset.name, "train"), _given(store, run)
    if found is not None:
        return store.load_space(run.dataset.name).normalise(found.pixels).to(device), found.labels.to(device)
    task = task_of(run, statistics)
    if run.ipc == "all":
        return task.gathered(real[0], real).to(device), real[1].to(device)

    def last() -> Tensor:
        epoch = run.experts.settings.last_epoch
        return store.read_snapshots(run.experts.name, 0, epoch, epoch + 1)[0]

    kind, who, network = run.distillation.initialisation, f"runs.{run.name}.ipc", _network(run, statistics, torch.device("cpu"))
    if isinstance(task, Tuples):
        images = initial.tuples(kind, run.ipc, run.seed, real, task, network, last, who)
        return images.to(device), _places(run, len(task.shape.modalities)).to(device)
    given = (kind, run.ipc, run.seed, real[0], real[1], statistics.counts["train"])
    images, labels = initial.images(*given, network, last, who)
    return images.to(device), labels.to(device)


def task_of(run: Run, statistics: Statistics) -> Task:
    """What the student learns of the synthetic set."""
    return tasks.of(statistics.shape, run.distillation.contrast, run.distillation.similarity)


def _places(run: Run, modalities: int) -> Tensor:
    """The labels of tuples before the first iteration: their places, or the numbers of their similarity."""
    assert run.ipc != "all"
    return contrast.first(run.distillation.similarity, run.ipc, modalities, generator(run.seed, "distill", "similarity"))


def _given(store: Store, run: Run) -> SyntheticSet | None:
    """The imported set, or the initial run's, if it has one. Raises ArtifactError where it is another, or other images."""
    given = run.distillation.given
    if run.initial is not None:
        return store.load_synthetic(run.initial.name)
    if given is None:
        return None
    path, remedy = store.imported_file(given.file), "bring it again with `python -m src.cli import synthetic`"
    found, shape = read_synthetic(path, remedy), store.load_statistics(run.dataset.name).image_shape
    if found.sha256() != given.sha256:
        raise ArtifactError(f"{path} is not the set that runs.{run.name}.distill.given names: {remedy}")
    if found.pixels.shape[1:] != (shape.channels, shape.size, shape.size) or int(found.classes.max()) >= shape.classes:
        raise ArtifactError(f"{path} holds no images of {run.dataset.name}: {remedy}")
    return found


def _network(run: Run, statistics: Statistics, device: torch.device) -> FlatNetwork:
    """The run's network as a function; its own parameters are never used."""
    return FlatNetwork(networks.build(run.spec, statistics.shape, torch.Generator()).to(device))


def loop_of(
    store: Store, run: Run, statistics: Statistics, images: Tensor, labels: Tensor, group: Ranks | None = None
) -> tuple[Loop, Backend, str]:
    """What every iteration takes, how its derivatives are taken, and what a user should know of that."""
    network, buffer = _network(run, statistics, images.device), run.buffer
    task = task_of(run, statistics)
    derivatives, backend, note = outer.differentiate(run.distillation, run.runtime, run.spec, network, images, task.loss)
    if group is not None and not task.splits_batches:
        raise UserError(f"{run.name}: the loss of tuples is no sum over them that processes could share out: run it in one")
    if group is not None:
        derivatives = group.shared_out(derivatives)
    count, called = (0, "") if buffer is None else (buffer.settings.count, buffer.name)
    read, space = functools.partial(store.read_snapshots, called), store.load_space(run.dataset.name)
    loop = Loop(
        run.name, run.seed, run.distillation, count, read, network, derivatives, labels, space,
        _logits(store, run, images, labels), _syn_lr(store, run, task), _real(store, run, images.device),
        task.shape if isinstance(task, Tuples) else None,
    )  # fmt: skip
    return loop, backend, note


def _logits(store: Store, run: Run, images: Tensor, labels: Tensor) -> Tensor | None:
    """What learned labels start from: what experts say of the images, or the labels that these have. On the device."""
    if run.distillation.labels != "learned":
        return None
    statistics = store.load_statistics(run.dataset.name)
    if run.buffer is None or labels.is_floating_point():
        return initial.softened(labels, statistics.image_shape.classes, run.distillation.label_certainty)
    name, settings, where = run.experts.name, run.experts.settings, torch.device("cpu")
    last = (settings.last_epoch, settings.last_epoch + 1)
    thetas = (store.read_snapshots(name, index, *last)[0] for index in range(settings.count))
    network = _network(run, statistics, where)
    return initial.logits(network, thetas, images.to(where), labels.to(where)).to(images.device)


def _syn_lr(store: Store, run: Run, task: Task) -> float | list[float] | None:
    """The initial run's, where it is asked for; of tuples that of each modality."""
    first = run.distillation.lr_init
    if first is None and run.initial is not None:
        found: float | list[float] = store.load_synthetic(run.initial.name).syn_lr.tolist()
        return found
    return [first or 0.0] * len(task.shape.modalities) if isinstance(task, Tuples) else None


def _real(store: Store, run: Run, device: torch.device) -> Real | None:
    """The training images, and fresh students, where their loss is asked for."""
    if run.distillation.real is None:
        return None
    images, labels = store.load_inputs(run.dataset.name, "train")
    fresh = functools.partial(_fresh, run.spec, store.load_statistics(run.dataset.name).shape)
    return Real(images.to(device), labels.to(device), fresh)


def _fresh(spec: Network, shape: Shape, draws: torch.Generator) -> Tensor:
    return networks.flatten(networks.build(spec, shape, draws))


def work_of(run: Run, record: Record, backend: Backend) -> Work:
    """The work by which a run goes on, also with more iterations; its record is whole."""
    return work.of(run.runtime, "distill", run.name, iterations_record(record), run.spec, backend, run.distillation.targets)


def _optimise(
    store: Store,
    run: Run,
    statistics: Statistics,
    images: Tensor,
    labels: Tensor,
    record: Record,
    tracker: Tracker,
    watch: Watch,
    group: Ranks | None,
) -> tuple[Loop, Distilling, Checkpoint]:
    """The outer loop; every iteration draws from its own generator."""
    name = run.name
    loop, backend, note = loop_of(store, run, statistics, images, labels, group)
    if note:
        progress.say(f"{name}: {note}")
    checkpoint = _checkpoint(work_of(run, record, backend), loop.distil.iterations)
    at = _begun(store, run, loop, images, _told(group, checkpoint.load()))
    if at.iteration:
        progress.say(f"{name}: resumed at iteration {at.iteration} of {loop.distil.iterations}")
    return loop, _iterate(loop, at, checkpoint, tracker, watch), checkpoint


def _checkpoint(own: Work, total: int) -> Checkpoint:
    """The first that is no further than `total` iterations; those that are wait for a run that goes so far again."""
    piece = 0
    while (done := len(own.checkpoint(piece).facts().get("rows", ()))) > total:
        progress.say(f"{own.name}: its {done} iterations, more than {total}, are kept apart")
        piece += 1
    return own.checkpoint(piece)


def _begun(store: Store, run: Run, loop: Loop, images: Tensor, stored: Stored | None) -> Distilling:
    """The loop as a checkpoint holds it, or before its first iteration."""
    given = _given(store, run)
    return outer.resumed(loop, stored) or outer.first(loop, images, None if given is None else given.pixels)


def _iterate(loop: Loop, at: Distilling, checkpoint: Checkpoint, tracker: Tracker, watch: Watch = unwatched) -> Distilling:
    """All iterations that are left. What is logged already is not logged twice."""
    for row in at.rows:
        run_log.log_row(tracker, row)
    for iteration, one in at.snapshots.items():
        run_log.log_images(tracker, one.pixels, loop.labels, iteration, loop.tuples)
    furthest, total = at.iteration, loop.distil.iterations

    def look() -> None:
        labels = outer.labels(loop, at.state).cpu()
        watch(furthest, SyntheticSet(at.snapshots[furthest].pixels, labels, at.state.syn_lr.cpu()))

    if 0 < furthest < total and furthest in at.snapshots:
        look()  # again, as it may have been cut off
    with progress.progress(f"distill {loop.name}", total, furthest) as advance, checkpoint.kept() as keep:
        while at.iteration < total:
            at = outer.iterate(loop, at)
            keep(at.stored)
            if at.iteration > furthest:  # not after a restore, until it is there again
                furthest, row = at.iteration, at.rows[-1]
                run_log.log_row(tracker, row)
                if furthest in at.snapshots:
                    pixels = at.snapshots[furthest].pixels
                    run_log.log_images(tracker, pixels, loop.labels, furthest, loop.tuples)
                    look()
                advance(f"{loop.distil.loss} {row['matching_loss']:.4f}, syn_lr {row['syn_lr']:.4f}")
    return at


def _of_all(record: Record, group: Ranks | None) -> Record:
    """The record that the artifacts get: how many shared the steps out rounds differently, and keeps no work from going on."""
    if group is None:
        return record
    lent = {**record.provenance["runtime"], "ranks": group.count}
    return replace(record, provenance={**record.provenance, "runtime": lent})


def _soft(moments: Sequence[Tensor | None], first: Tensor) -> Tensor | None:
    """Labels (T, S, K) on the way, where there are any; `first` before an expert has labelled the images."""
    known = [one for one in moments if one is not None]
    if not known:
        return None
    hard = first if first.is_floating_point() else F.one_hot(first, known[0].shape[1]).float()
    return torch.stack([hard if one is None else one for one in moments])


def _save(store: Store, name: str, ended: Distilling, first: Tensor, labels: Tensor, record: Record) -> None:
    pixels, snapshots = ended.snapshots[ended.iteration].pixels, ended.snapshots if ended.rows else {}
    moments = [one.pixels for one in snapshots.values()]  # none of a set that is not distilled
    kept = torch.stack(moments) if moments else pixels.new_empty(0)
    iterations = torch.tensor([*snapshots]).long()
    soft = _soft([one.labels for one in snapshots.values()], first)
    store.save_snapshots(name, Snapshots(iterations, kept, soft), record)
    files.write_csv(store.history_file(name), ended.rows, HISTORY_COLUMNS)
    store.save_synthetic(name, SyntheticSet(pixels, labels, ended.state.syn_lr), record)
