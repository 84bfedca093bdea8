"""experts: networks trained on the real training split -> the expert buffer, one trajectory a file, and its curves."""

from __future__ import annotations

import functools
import hashlib
import statistics as numbers
from dataclasses import dataclass, replace
from typing import Any

import torch

from src.ground.errors import ArtifactError, DivergenceError
from src.loops import expert
from src.loops.expert import Expert, Row, Training
from src.loops.stored import Stored
from src.maths import derivatives
from src.process import progress, workers
from src.process.progress import Advance
from src.process.workers import Array
from src.settings.resolved import Buffer
from src.stages import run_log, work
from src.stages.records import experts_record, prepared
from src.store import checkpoints, cost, files, removed, tensors, values
from src.store.checkpoints import Checkpoint, Work
from src.store.cost import Cost
from src.store.store import Store
from src.store.values import Record, Statistics
from src.tracking import tracker as tracking


@dataclass(frozen=True)
class Job:
    """The training of every expert of a buffer, and where what becomes of it goes."""

    store: Store
    name: str
    record: Record
    work: Work
    training: Training


def run(store: Store, buffer: Buffer) -> None:
    """Train the experts of a buffer, or those that are not there yet."""
    with checkpoints.at_work("experts", buffer.name):
        removed.take_back(store, buffer.name)
        _run(store, buffer)


def _run(store: Store, buffer: Buffer) -> None:
    name, dataset, settings = buffer.name, buffer.dataset.name, buffer.settings
    device = work.start(buffer.runtime, name)
    statistics = prepared(store, buffer.dataset, "train", "val")
    record = work.whole(experts_record(store, buffer), buffer.runtime, "experts", device)
    say_what_is_needed(buffer)
    find = {"ast.fingerprint": tracking.fingerprint({**vars(record), "count": settings.count})}
    with tracking.track(dataset, f"experts/{name}", "experts", find) as tracker:
        tracker.params({"experts": settings.model_dump(), "network": buffer.spec.model_dump()})
        tracker.dataset(dataset, store.split_file(dataset, "train"), "training")
        with cost.measured(device) as spent:
            if settings.imported is None:
                rows, elsewhere = train_all(store, buffer, statistics, record, device)
            else:
                rows, elsewhere = imported(store, buffer, statistics, record, device), Cost()
        spent.add(elsewhere)
        files.write_csv(store.expert_curves_file(name), rows)
        _forget_others(store, name, settings.count)
        cost.keep(store.trajectories_folder(name), spent)
        run_log.log_experts(tracker, store, name, rows, spent)
    final = [row["val_accuracy"] for row in rows if row["epoch"] == settings.last_epoch]
    progress.say(f"{name}: {settings.count} experts, validation accuracy {numbers.mean(final):.1%}")


def imported(store: Store, buffer: Buffer, statistics: Statistics, record: Record, device: torch.device) -> list[Row]:
    """The curves' rows of trajectories that `import experts` brought. Raises ArtifactError where these are not there."""
    name, settings = buffer.name, buffer.settings
    remedy = f"they are imported, so bring them again with `python -m src.cli import experts`, or `dvc pull experts@{name}`"
    tensors.check_record(store.trajectory_file(name, 0), replace(record, kind=values.trajectory_kind(0)), remedy)
    training = Training(
        settings, buffer.spec, statistics.shape, buffer.seed, False, "eager", *2 * [_arrays(store, buffer.dataset.name, "val")]
    )
    found, digest = [], hashlib.sha256()
    for index in range(settings.count):
        trajectory = store.read_snapshots(name, index, 0, settings.epochs + 1)
        digest.update(expert.digest(trajectory).encode())
        found += expert.curves_of(training, index, trajectory, device)
    if digest.hexdigest() != settings.imported:
        raise ArtifactError(f"the trajectories of {name} are not those that experts.{name}.imported names: {remedy}")
    return found


def say_what_is_needed(buffer: Buffer) -> None:
    """Experts are the dearest part: say where the runs of params.yaml match to fewer epochs than are trained."""
    needed, last = buffer.needed, buffer.settings.last_epoch
    if needed is not None and needed < last:
        saved = f"stop_epoch: {needed} would save {100 * (1 - needed / last):.0f} %"
        progress.say(f"{buffer.name}: its runs need {needed} of {last} epochs: {saved}")


def train_all(
    store: Store, buffer: Buffer, statistics: Statistics, record: Record, device: torch.device
) -> tuple[list[dict[str, Any]], Cost]:
    """Train every expert; the curves' rows by expert and epoch, and the cost of other processes, earlier ones included."""
    name, settings, asked = buffer.name, buffer.settings, buffer.runtime
    training, note = training_of(store, buffer, statistics, device)
    if note:
        progress.say(f"{name}: {note}")
    job = Job(store, name, record, work.of(asked, "experts", name, record, buffer.spec, training.backend), training)
    processes = workers.processes(asked, device, settings.count, _flops(buffer, statistics))
    units, earlier = settings.count * settings.last_epoch, [job.work.checkpoint(i).facts() for i in range(settings.count)]
    before = sum(len(facts["rows"]) for facts in earlier if facts)
    if any(earlier):
        progress.say(f"{name}: resumed at {before} of {units} epochs of {settings.count} experts")
    train_one = functools.partial(_train_one, job)
    seconds = job.work.seconds_spent(settings.count) / processes
    found, peak = workers.each(train_one, settings.count, asked, processes, f"experts {name}", units, before)
    return [row for rows in found for row in rows], Cost(seconds, peak)


def training_of(store: Store, buffer: Buffer, statistics: Statistics, device: torch.device) -> tuple[Training, str]:
    """What the training of every expert takes, and what a user should know of it."""
    asked, arrays = buffer.runtime, (_arrays(store, buffer.dataset.name, split) for split in ("train", "val"))
    backend, note = derivatives.choose(asked, device, buffer.spec, _flops(buffer, statistics))
    bfloat16 = asked.precision == "bfloat16"
    return Training(buffer.settings, buffer.spec, statistics.shape, buffer.seed, bfloat16, backend, *arrays), note


def _flops(buffer: Buffer, statistics: Statistics) -> float:
    """Floating-point operations of all experts."""
    images = sum(statistics.counts["train"].values())
    return buffer.settings.count * expert.flops(buffer.settings, buffer.spec, statistics.shape, images)


def _arrays(store: Store, dataset: str, split: str) -> tuple[Array, Array]:
    images, labels = store.load_inputs(dataset, split)
    return images.numpy(), labels.numpy()


def _train_one(job: Job, index: int, device: torch.device, advance: Advance) -> list[Row]:
    """Train one expert, wherever joblib puts it, and save its trajectory as soon as it is whole; its curves' rows.

    A trajectory of the same work that lies there already is kept, and what an earlier process began is continued.
    """
    path, checkpoint = job.store.trajectory_file(job.name, index), job.work.checkpoint(index)
    stored = checkpoint.load()
    if stored is not None and "trajectory" in stored[1]:
        if path.exists() and files.digest(path) == stored[1]["trajectory"]:
            return list(stored[1]["rows"])
        stored = None  # gone or changed since
    trajectory, rows = expert.curves(job.training, _trained(job, index, device, checkpoint, stored, advance))
    job.store.save_trajectory(job.name, index, trajectory, job.record)
    checkpoint.save({}, {"trajectory": files.digest(path), "rows": rows})
    return rows


def _trained(
    job: Job, index: int, device: torch.device, checkpoint: Checkpoint, stored: Stored | None, advance: Advance
) -> Expert:
    """One expert after its last epoch."""
    training = job.training
    one = expert.restored(stored, device) if stored else expert.first(training, index, device)
    try:
        with checkpoint.kept() as keep:
            for one in expert.steps(training, index, one, device):  # noqa: B020, each takes the place of the one before
                keep(functools.partial(one.stored, training.settings))
                if one.state.between_epochs:
                    advance(f"validation {one.rows[-1]['val_accuracy']:.1%}")
    except DivergenceError as error:
        good = f"last good train loss {one.rows[-1]['train_loss']:g}" if one.rows else "no good epoch before"
        raise DivergenceError(f"{job.name}, expert {index}: {error}; {good}") from None
    return one


def _forget_others(store: Store, name: str, count: int) -> None:
    """Delete what an earlier, larger buffer of this name left behind: DVC keeps the folder as it is between two runs."""
    keep = {store.trajectory_file(name, index) for index in range(count)}
    for path in store.trajectories_folder(name).iterdir():
        if path not in keep:
            path.unlink()
