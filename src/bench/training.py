"""This repository's own training of experts and of students, in as many processes as its stages would take."""

from __future__ import annotations

import functools
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from src.bench import engine, measure
from src.bench.problem import build, real_images, shape, spec
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
from src.ground.seeding import generator
from src.loops import expert_memory
from src.loops.counted import Task
from src.loops.students import Training
from src.maths import derivatives, expert_training, protocol
from src.maths import experts_together as together
from src.maths.derivatives import Backend
from src.maths.expert_training import CHUNK
from src.maths.networks import FlatNetwork, forward_flops
from src.process import workers
from src.process.progress import Advance
from src.settings.experts import Experts
from src.settings.protocols import Protocol
from src.stages import students
from src.store import cost
from src.store.checkpoints import Work

# of the papers' runs: the stages decide by the whole work whether to compile and in how many processes to train
REAL_EXPERTS, REAL_EXPERT_EPOCHS, REAL_STUDENT_EPOCHS = 100, 50, 1_000


def experts(setting: ExpertsSetting) -> dict[str, Any]:
    """Real images a second of the training of as many experts as train side by side, in their second epoch."""
    asked, device = engine.start(setting)
    passes = expert_training.passes(_expert_settings(setting), setting.images)
    flops = passes * REAL_EXPERTS * REAL_EXPERT_EPOCHS * _forward(setting)
    backend, note = derivatives.choose(asked, device, spec(setting), flops)
    count = workers.processes(asked, device, REAL_EXPERTS, flops)
    with tempfile.TemporaryDirectory() as folder:
        work = functools.partial(_expert, setting, backend, Path(folder), count)
        found, peak = workers.each(work, count, asked, count, "experts", count)
    seconds = max(found) / count  # of one expert's epoch
    figures = {"seconds": seconds, "images_per_second": setting.images / seconds, "processes": count}
    return measure.surroundings(device) | figures | {"peak_memory_mib": peak, "backend": backend, "note": note}


def _expert(
    setting: ExpertsSetting, backend: Backend, folder: Path, count: int, index: int, device: torch.device, advance: Advance
) -> float:
    """Seconds of one expert's second epoch, while the others do the same."""
    labels = torch.arange(setting.images) % setting.classes
    images = real_images(setting, labels, "real").to(device)
    module = build(setting, index).to(device)
    settings = _expert_settings(setting)
    gradient = expert_training.differentiate(FlatNetwork(module), settings, setting.precision == "bfloat16", backend)
    draws = generator(setting.seed, "bench", "training", index)
    epochs = expert_training.train(
        module,
        images,
        labels.to(device),
        settings,
        draws,
        gradient,
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


def experts_together(setting: ExpertsSetting) -> dict[str, Any]:
    """Real images a second of as many experts as a GPU's memory holds side by side (a CPU: two), in their second epoch."""
    asked, device = engine.start(setting)
    settings, bfloat16 = _expert_settings(setting), setting.precision == "bfloat16"
    passes = expert_training.passes(settings, setting.images)
    backend, note = derivatives.choose(
        asked, device, spec(setting), passes * REAL_EXPERTS * REAL_EXPERT_EPOCHS * _forward(setting)
    )
    count = 2
    if device.type == "cuda":
        task = Task(spec(setting), shape(setting), bfloat16)
        _, memory = torch.cuda.mem_get_info(device)
        count = expert_memory.side_by_side(task, settings, setting.images, 0, setting.workers or REAL_EXPERTS, memory)
    labels = torch.arange(setting.images) % setting.classes
    images, labels = real_images(setting, labels, "real").to(device), labels.to(device)
    modules = [build(setting, index).to(device) for index in range(count)]
    gradient = together.differentiate(FlatNetwork(modules[0]), settings, bfloat16, backend)
    draws = [generator(setting.seed, "bench", "training", index) for index in range(count)]
    states = [expert_training.start(module, one) for module, one in zip(modules, draws, strict=True)]
    stepped = together.steps(states, images, labels, settings, gradient)
    steps = -(-setting.images // setting.batch_size)
    begun = cost.now(device)
    for _ in range(steps):  # an epoch to warm up and compile
        next(stepped)
    first = cost.now(device) - begun
    seconds = cost.seconds(lambda: [next(stepped) for _ in range(steps)], device)
    figures = {"seconds": seconds / count, "images_per_second": count * setting.images / seconds, "experts": count}
    compiling = {
        "backend": backend,
        "compile_seconds": max(first - seconds, 0.0) if backend in ("compiled", "fused") else 0.0,
        "note": note,
    }
    return measure.surroundings(device) | figures | compiling


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
    """Seconds that the stage takes to train all students, after an epoch to warm up in each process."""
    asked, device = engine.start(setting)
    real = _student_settings(setting, REAL_STUDENT_EPOCHS)
    way = protocol.choose(asked, device, real, setting.ipc * setting.classes, _forward(setting), spec(setting))
    groups = 1 if way.together else setting.students
    count = workers.processes(asked, device, groups, way.flops)
    labels = torch.arange(setting.classes).repeat_interleave(setting.ipc)
    images = real_images(setting, labels, "synthetic")

    def train(epochs: int) -> None:
        definition = {"process": os.getpid(), "epochs": epochs}
        training = Training(
            _student_settings(setting, epochs), spec(setting), shape(setting), setting.seed, way,
            images.numpy(), labels.numpy(), STUDENT_LR, (), None, _nothing,
        )  # fmt: skip
        work = Work("evaluate", "bench", definition, asked.checkpoint_seconds)
        students.train_all(students.Job(training, work), groups, asked, count, "students")
        work.forget()

    train(2)  # compiles, in each process, as every one begins with an epoch of its own
    spent = cost.seconds(lambda: train(setting.epochs), device)
    figures = {"seconds": spent, "processes": count, "backend": way.backend, "note": way.note}
    return measure.surroundings(device) | figures


def _student_settings(setting: EvaluateSetting, epochs: int) -> Protocol:
    return Protocol(
        students=setting.students, epochs=epochs, batch_size=setting.batch_size, momentum=STUDENT_MOMENTUM,
        weight_decay=STUDENT_DECAY, augmentation=AUGMENTATION,
    )  # fmt: skip


def _forward(setting: Setting) -> int:
    """Floating-point operations of one image's forward pass."""
    image = torch.zeros(1, setting.channels, setting.size, setting.size)
    return forward_flops(build(setting, 0), image)


def _meet(folder: Path, index: int, count: int) -> None:
    """Wait until all processes are there, so that what follows runs side by side."""
    (folder / str(index)).touch()
    while sum(1 for _ in folder.iterdir()) < count:
        time.sleep(0.01)


def _nothing(split: str) -> tuple[Tensor, Tensor]:
    """No split is predicted."""
    raise NotImplementedError(split)
