"""This repository's own training of experts and of students, in as many processes as its stages would take."""

from __future__ import annotations

import functools
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from src.bench import engine, measure
from src.bench.problem import build, real_images
from src.bench.settings import (
    AUGMENTATION,
    EXPERT_LR,
    EXPERT_MOMENTUM,
    STUDENT_DECAY,
    STUDENT_LR,
    STUDENT_MOMENTUM,
    EvaluateSetting,
    ExpertsSetting,
    Setting,
)
from src.ground import runtime
from src.ground.seeding import generator
from src.ground.settings import Experts, Protocol
from src.io import cost, workers
from src.io.progress import Advance
from src.maths import expert_training, protocol
from src.maths.derivatives import forward_flops
from src.maths.expert_training import CHUNK, Gradient
from src.maths.networks import FlatNetwork, flatten
from src.maths.protocol import Gradients, Way

# of the papers' runs: the stages decide by the whole work whether to compile and in how many processes to train
REAL_EXPERTS, REAL_EXPERT_EPOCHS, REAL_STUDENT_EPOCHS = 100, 50, 1_000


def experts(setting: ExpertsSetting) -> dict[str, Any]:
    """Real images a second of the training of as many experts as train side by side, in their second epoch."""
    asked, device = engine.start(setting)
    passes = expert_training.passes(_expert_settings(setting), setting.images)
    flops = passes * REAL_EXPERTS * REAL_EXPERT_EPOCHS * _forward(setting)
    compiled, note = runtime.compiles(asked, flops)
    count = workers.processes(asked, device, REAL_EXPERTS, flops)
    with tempfile.TemporaryDirectory() as folder:
        work = functools.partial(_expert, setting, compiled, Path(folder), count)
        found, peak = workers.each(work, count, asked, count, "experts", count)
    seconds = max(found) / count  # of one expert's epoch
    figures = {"seconds": seconds, "images_per_second": setting.images / seconds, "processes": count}
    return measure.surroundings(device) | figures | {"peak_memory_mib": peak, "note": "" if compiled else note}


def _expert(
    setting: ExpertsSetting, compiled: bool, folder: Path, count: int, index: int, device: torch.device, advance: Advance
) -> float:
    """Seconds of one expert's second epoch, while the others do the same."""
    labels = torch.arange(setting.images) % setting.classes
    images = real_images(setting, labels, "real").to(device)
    module = build(setting, index).to(device)
    settings = _expert_settings(setting)
    gradient: Gradient = expert_training.differentiate(FlatNetwork(module), settings, setting.precision == "bfloat16")
    draws = generator(setting.seed, "bench", "training", index)
    epochs = expert_training.train(
        module,
        images,
        labels.to(device),
        settings,
        draws,
        runtime.compiled(gradient) if compiled else gradient,
        CHUNK if device.type == "cpu" else None,
    )
    try:
        for _ in range(2):  # the initialisation and an epoch to warm up
            next(epochs)
    finally:
        _meet(folder, index, count)  # also where training failed, or the others would wait for ever
    spent = cost.seconds(lambda: next(epochs), device)
    advance()
    return spent


def _expert_settings(setting: ExpertsSetting) -> Experts:
    return Experts(
        dataset="",
        network="",
        count=1,
        epochs=2,
        batch_size=setting.batch_size,
        lr=EXPERT_LR,
        momentum=EXPERT_MOMENTUM,
        augmentation=AUGMENTATION,
        gradient_penalty=setting.gradient_penalty,
    )


def evaluate(setting: EvaluateSetting) -> dict[str, Any]:
    """Seconds that the training of all students takes, after an epoch to warm up in each process."""
    asked, device = engine.start(setting)
    real = _student_settings(setting, REAL_STUDENT_EPOCHS)
    way = protocol.choose(asked, device, real, setting.ipc * setting.classes, _forward(setting))
    students = range(setting.students)
    groups = [students] if way.together else [range(student, student + 1) for student in students]
    count = workers.processes(asked, device, len(groups), way.flops)
    train = functools.partial(_students, setting, way, groups)
    with tempfile.TemporaryDirectory() as folder:
        workers.each(functools.partial(train, 1, Path(folder), count), count, asked, count, "warming up", count)
    work = functools.partial(train, setting.epochs, None, count)
    spent = cost.seconds(lambda: workers.each(work, len(groups), asked, count, "students", len(groups)), device)
    figures = {"seconds": spent, "processes": count, "note": "" if way.compiled else way.note}
    return measure.surroundings(device) | figures


def _student_settings(setting: EvaluateSetting, epochs: int) -> Protocol:
    return Protocol(
        students=setting.students, epochs=epochs, batch_size=setting.batch_size, momentum=STUDENT_MOMENTUM,
        weight_decay=STUDENT_DECAY, augmentation=AUGMENTATION,
    )  # fmt: skip


def _students(
    setting: EvaluateSetting,
    way: Way,
    groups: Sequence[range],
    epochs: int,
    folder: Path | None,
    count: int,
    index: int,
    device: torch.device,
    advance: Advance,
) -> None:
    """Train one group of students; with a folder, only once there is a process for each."""
    if folder is not None:
        _meet(folder, index, count)
    labels = torch.arange(setting.classes).repeat_interleave(setting.ipc)
    images = real_images(setting, labels, "synthetic").to(device)
    thetas = torch.stack([flatten(build(setting, student)) for student in groups[index]]).to(device)
    settings = _student_settings(setting, epochs)
    draws = [generator(setting.seed, "bench", "student", student) for student in groups[index]]
    network, gradients = _student_gradients(setting, way, device)
    protocol.train_students(network, thetas, images, labels.to(device), STUDENT_LR, settings, draws, gradients=gradients)
    advance()


@functools.cache
def _student_gradients(setting: EvaluateSetting, way: Way, device: torch.device) -> tuple[FlatNetwork, Gradients]:
    """The network and its derivative, compiled once in a process."""
    network = FlatNetwork(build(setting, 0).to(device))
    return network, protocol.derivative(network, way)


def _forward(setting: Setting) -> int:
    """Floating-point operations of one image's forward pass."""
    network = FlatNetwork(build(setting, 0))
    image = torch.zeros(1, setting.channels, setting.size, setting.size)
    return forward_flops(network, torch.zeros(network.dimension), image)


def _meet(folder: Path, index: int, count: int) -> None:
    """Wait until all processes are there, so that what follows runs side by side."""
    (folder / str(index)).touch()
    while sum(1 for _ in folder.iterdir()) < count:
        time.sleep(0.01)
