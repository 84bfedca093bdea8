"""Training of fresh students on a synthetic set, all at once or each in a process of its own, and what they then predict."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from pathlib import Path

import torch

from src.loops import students as loops
from src.loops.students import Training
from src.process import cluster, workers
from src.process.arrays import Array
from src.process.progress import Advance, say
from src.settings.runtime import Runtime
from src.store.checkpoints import Work
from src.store.cost import Cost

Predicted = dict[str, Array]  # split -> classes (g, N)


@dataclass(frozen=True)
class Job:
    """The training of all students, and the work by which it survives an interruption and goes from process to process."""

    training: Training
    work: Work
    reads: tuple[Path, ...] = ()  # files of the splits that it predicts


def parts(groups: int, processes: int) -> int:
    """Equal parts of each group's training, by which so many processes end at the same time.

    Five students in two processes would be three rounds; ten halves are five, two and a half of a student's.
    """
    return processes // math.gcd(groups, processes)


def epochs_before(work: Work, groups: int) -> int:
    """Epochs of all students that earlier processes finished."""
    return sum(work.checkpoint(group).facts().get("epochs", 0) for group in range(groups))


def train_all(job: Job, groups: int, runtime: Runtime, processes: int, title: str) -> tuple[list[Predicted], Cost]:
    """What each group's students predict after their training, and the cost of other processes, earlier ones included."""
    handed_on = cluster.address(runtime) is None  # machines have no lock in common
    pieces, training = (parts(groups, processes) if handed_on else 1) * groups, job.training
    units, before = groups * training.settings.epochs, epochs_before(job.work, groups)
    if before:
        say(f"{title}: {'kept from before' if before == units else f'resumed at {before} of {units} epochs'}")
    part = functools.partial(_train_part, job, groups, pieces)
    seconds = job.work.seconds_spent(groups) / processes
    found, peak = workers.each(part, pieces, runtime, processes, title, units, before, functools.partial(_reads, job, groups))
    return found[-groups:], Cost(seconds, peak)


def _reads(job: Job, groups: int, index: int) -> list[Path]:
    return [*job.reads, job.work.checkpoint(index % groups).path]


def _train_part(job: Job, groups: int, pieces: int, index: int, device: torch.device, advance: Advance) -> Predicted | None:
    """A part of a group's training, wherever joblib puts it; after the last one what its students predict.

    Pieces come as the first parts of all groups, then the second ones. A part begins where the checkpoint is: that is how one
    process hands a group to another, and how work that was interrupted goes on.
    """
    part, group = divmod(index, groups)
    training = job.training
    until = training.settings.epochs * (part + 1) * groups // pieces
    checkpoint = job.work.checkpoint(group)
    with checkpoint.alone():  # the part before may still be in the making
        stored = checkpoint.load()
        if stored is not None and stored[1].get("predicted"):
            return {split: stored[0][split].numpy() for split in training.splits}
        if stored is not None and stored[1]["epochs"] >= until < training.settings.epochs:
            return None
        with checkpoint.kept() as keep:
            students = loops.start(training, group, device, stored)
            for _ in students.epochs(until):
                keep(students.state())
                advance()
            if until < training.settings.epochs:
                checkpoint.save(*students.state()())
                return None
            found = students.predictors()
            predicted = {split: loops.predict(training, split, found, device).cpu() for split in training.splits}
        checkpoint.save(predicted, {"epochs": until, "predicted": True})
    return {split: classes.numpy() for split, classes in predicted.items()}
