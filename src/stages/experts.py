"""experts: networks trained on the real training split -> the expert buffer, one trajectory a file, and its curves."""

from __future__ import annotations

import functools
import hashlib
import statistics as numbers
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from src.ground.errors import ArtifactError, DivergenceError, UserError
from src.loops import expert
from src.loops.expert import Expert, Row, Training
from src.loops.stored import Stored
from src.maths import derivatives
from src.process import depot, progress, workers
from src.process.arrays import Array
from src.process.progress import Advance
from src.settings.resolved import Buffer
from src.stages import run_log, work
from src.stages.records import experts_record, prepared
from src.store import checkpoints, cost, files, removed, tensors, values
from src.store.checkpoints import Checkpoint, Work
from src.store.cost import Cost
from src.store.store import Store
from src.store.values import Record, Statistics, TupleStatistics
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


def run_some(store: Store, buffer: Buffer, only: range) -> None:
    """Train some of a buffer's experts, beside others who train others; `run` then finds them, and makes the buffer whole."""
    name, count = buffer.name, buffer.settings.count
    if only.stop > count:
        raise UserError(f"--only {only.start}-{only.stop - 1}: {name} has experts 0 to {count - 1}: lower it, or raise `count`")
    if buffer.settings.imported is not None:
        raise UserError(f"the experts of {name} are imported, so there are none to train: leave out --only")
    with checkpoints.at_work("experts", f"{name}-{only.start}-{only.stop - 1}"):
        device = work.start(buffer.runtime, name)
        statistics = prepared(store, buffer.dataset, "train", "val")
        record = work.whole(experts_record(store, buffer), buffer.runtime, "experts", device)
        rows, _ = train_all(store, buffer, statistics, record, device, only)
    headline = run_log.headline(rows)
    final = numbers.mean(row[f"val_{headline}"] for row in rows if row["epoch"] == buffer.settings.last_epoch)
    progress.say(f"{name}: experts {only.start} to {only.stop - 1} of {count}, validation {headline} {final:.1%}")


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
    headline = run_log.headline(rows)
    final = [row[f"val_{headline}"] for row in rows if row["epoch"] == settings.last_epoch]
    progress.say(f"{name}: {settings.count} experts, validation {headline} {numbers.mean(final):.1%}")


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
    store: Store, buffer: Buffer, statistics: Statistics, record: Record, device: torch.device, only: range | None = None
) -> tuple[list[dict[str, Any]], Cost]:
    """Train every expert, or some; the curves' rows by expert and epoch, and the cost of other processes, earlier ones too."""
    name, settings, asked = buffer.name, buffer.settings, buffer.runtime
    training, note = training_of(store, buffer, statistics, device)
    if note:
        progress.say(f"{name}: {note}")
    job = Job(store, name, record, work.of(asked, "experts", name, record, buffer.spec, training.backend), training)
    # a group is whole wherever it is trained: that of the range in which it begins
    groups = [group for group in _groups(buffer, statistics, device) if only is None or group.start in only]
    wanted = [one for group in groups for one in group]
    if not groups:
        raise UserError(f"{name}: no group of experts begins at those of --only, which a GPU trains side by side: take more")
    processes = workers.processes(asked, device, len(wanted), _flops(buffer, statistics))
    units, earlier = len(wanted) * settings.last_epoch, [job.work.checkpoint(i).facts() for i in wanted]
    before = sum(len(facts["rows"]) for facts in earlier if facts)
    if any(earlier):
        progress.say(f"{name}: resumed at {before} of {units} epochs of {len(wanted)} experts")
    train_group, kept = functools.partial(_train_group, job, groups), functools.partial(_kept, job, groups)
    seconds = job.work.seconds_spent(settings.count) / processes
    found, peak = workers.each(train_group, len(groups), asked, processes, f"experts {name}", units, before, kept)
    return [row for group in found for rows in group for row in rows], Cost(seconds, peak)


def _kept(job: Job, groups: Sequence[range], index: int) -> list[Path]:
    """What an earlier process left of a group."""
    files_of = ((job.work.checkpoint(one).path, job.store.trajectory_file(job.name, one)) for one in groups[index])
    return [path for pair in files_of for path in pair]


def _groups(buffer: Buffer, statistics: Statistics, device: torch.device) -> list[range]:
    """Experts that are trained at once: on a CPU each alone, on a GPU as many as its memory holds, or `runtime.workers` wants.

    It is the memory that the GPU has, not what is free just now: the same parameters are to give the same groups. Of tuples
    each is trained alone.
    """
    count, asked, size = buffer.settings.count, buffer.runtime, 1
    if device.type == "cuda" and not isinstance(statistics, TupleStatistics):
        from src.loops import counted, expert_memory

        _, total = torch.cuda.mem_get_info(device)
        task = counted.Task(buffer.spec, statistics.image_shape, asked.precision == "bfloat16")
        train, val = (sum(statistics.counts[split].values()) for split in ("train", "val"))
        most = min(count, asked.workers or count)
        size = expert_memory.side_by_side(task, buffer.settings, train, val, most, total)
    return [range(first, min(first + size, count)) for first in range(0, count, size)]


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


def _arrays(store: Store, dataset: str, split: str) -> tuple[Array, ...]:
    return tuple(tensor.numpy() for tensor in store.load_real(dataset, split))


def _train_group(job: Job, groups: Sequence[range], index: int, device: torch.device, advance: Advance) -> list[list[Row]]:
    """Train a group of experts, wherever joblib puts it, and save their trajectories; their curves' rows.

    A trajectory of the same work that lies there already is kept, and what an earlier process began is continued; one that is
    at it is waited for.
    """
    with ExitStack() as alone:
        for one in groups[index]:
            alone.enter_context(job.work.checkpoint(one).alone())
        return _train_alone(job, groups[index], device, advance)


def _train_alone(job: Job, group: range, device: torch.device, advance: Advance) -> list[list[Row]]:
    found: dict[int, list[Row]] = {}
    begun: dict[int, tuple[Checkpoint, Stored | None]] = {}
    for one in group:
        path, checkpoint = job.store.trajectory_file(job.name, one), job.work.checkpoint(one)
        stored = checkpoint.load()
        depot.bring(path)
        if stored is not None and "trajectory" in stored[1]:
            if path.exists() and files.digest(path) == stored[1]["trajectory"]:
                found[one] = list(stored[1]["rows"])
                continue
            stored = None  # gone or changed since
        begun[one] = checkpoint, stored
    for one, trained in _trained(job, begun, device, advance).items() if begun else ():
        found[one] = _saved(job, one, trained, begun[one][0])
    return [found[one] for one in group]


def _saved(job: Job, index: int, trained: Expert, checkpoint: Checkpoint) -> list[Row]:
    """The curves' rows of an expert whose trajectory is whole, and saved here."""
    trajectory, rows = expert.curves(job.training, trained)
    job.store.save_trajectory(job.name, index, trajectory, job.record)
    depot.share(job.store.trajectory_file(job.name, index))
    checkpoint.save({}, {"trajectory": files.digest(job.store.trajectory_file(job.name, index)), "rows": rows})
    return rows


def _trained(
    job: Job, begun: Mapping[int, tuple[Checkpoint, Stored | None]], device: torch.device, advance: Advance
) -> dict[int, Expert]:
    """Experts after their last epoch, from where they were stored."""
    training = job.training
    at = {
        index: expert.restored(stored, device) if stored else expert.first(training, index, device)
        for index, (_, stored) in begun.items()
    }
    try:
        with ExitStack() as stack:
            keeps = {index: stack.enter_context(checkpoint.kept()) for index, (checkpoint, _) in begun.items()}
            for later in _steps(training, at, device):
                before, at = at, later
                for index, one in at.items():
                    if one is before[index]:
                        continue
                    keeps[index](functools.partial(one.stored, training.settings))
                    if one.state.between_epochs:
                        advance(f"validation {one.rows[-1][f'val_{training.task.headline}']:.1%}")
    except DivergenceError as error:
        raise DivergenceError(f"{job.name}, {_called(at)}: {error}; {_last_good(at)}") from None
    return at


def _steps(training: Training, at: Mapping[int, Expert], device: torch.device) -> Iterator[dict[int, Expert]]:
    """The experts after each further step."""
    if len(at) > 1:
        for experts in expert.steps_together(training, [*at], [*at.values()], device):
            yield dict(zip(at, experts, strict=True))
        return
    ((index, alone),) = at.items()
    for alone in expert.steps(training, index, alone, device):  # noqa: B020, each takes the place of the one before
        yield {index: alone}


def _called(at: Mapping[int, Expert]) -> str:
    return f"expert{'s' if len(at) > 1 else ''} {' '.join(map(str, at))}"


def _last_good(at: Mapping[int, Expert]) -> str:
    rows = [one.rows[-1]["train_loss"] for one in at.values() if one.rows]
    return f"last good train loss {max(rows):g}" if rows else "no good epoch before"


def _forget_others(store: Store, name: str, count: int) -> None:
    """Delete what an earlier, larger buffer of this name left behind: DVC keeps the folder as it is between two runs."""
    keep = {store.trajectory_file(name, index) for index in range(count)}
    for path in store.trajectories_folder(name).iterdir():
        if path not in keep:
            path.unlink()
