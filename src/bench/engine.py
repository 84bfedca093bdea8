"""This repository's own way, through the functions that its stages call."""

from __future__ import annotations

from typing import Any

import torch

from src.bench import measure
from src.bench.problem import Problem, build, matching_problem, real_images
from src.bench.settings import AUGMENTATION, EvaluateSetting, ExpertsSetting, MatchingSetting, Setting
from src.ground import runtime
from src.ground.seeding import generator
from src.ground.settings import Experts, Protocol, Runtime
from src.maths import distillation, expert_training, inner_loop, protocol
from src.maths.derivatives import PASSES, Derivatives, forward_flops
from src.maths.distillation import Start
from src.maths.networks import FlatNetwork, flatten

EXPERT_LR, EXPERT_MOMENTUM = 0.01, 0.9
STUDENT_LR, STUDENT_MOMENTUM, STUDENT_DECAY = 0.01, 0.9, 5e-4
REAL_ITERATIONS = 5_000  # of the papers' runs: what compile 'auto' decides by


def start(setting: Setting) -> tuple[Runtime, torch.device]:
    """The runtime that the setting asks for, started."""
    asked = Runtime(device=setting.device, precision=setting.precision, compile=setting.compile)
    return asked, runtime.start(asked)


def derivatives(setting: MatchingSetting, given: Problem, asked: Runtime) -> tuple[Derivatives, dict[str, Any]]:
    """Compiled as a real run would have them, and what compiling took: seconds, 0 where it is off."""
    flops = PASSES * REAL_ITERATIONS * setting.syn_steps * setting.count * forward(given)
    compiled, reason = runtime.compiles(asked, flops)
    found = Derivatives(given.network, setting.precision == "bfloat16", compiled)
    spent = 0.0
    if compiled:
        theta, device = given.snapshots[0], given.images.device
        first, again = (measure.seconds(lambda: _both(found, given, theta), device) for _ in range(2))
        spent = max(first - again, 0.0)
    return found, {"compile_seconds": spent, "compiled": compiled, "note": "" if compiled else reason}


def forward(given: Problem) -> int:
    """Floating-point operations of one image's forward pass."""
    return forward_flops(given.network, given.snapshots[0], given.images[:1])


def _both(found: Derivatives, given: Problem, theta: torch.Tensor) -> None:
    found.first(theta, given.images, given.labels)
    found.second(theta, given.images, given.labels, theta)


def matching(setting: MatchingSetting) -> dict[str, Any]:
    """Seconds of an iteration of the outer loop, and the matching losses it saw."""
    asked, device = start(setting)
    given = matching_problem(setting, device)
    found, compiling = derivatives(setting, given, asked)
    state = distillation.start(given.images, given.settings)
    starts = [Start(given.snapshots, epoch=0)]
    losses: list[float] = []

    def iterate() -> None:
        nonlocal state
        draws = given.draws(len(losses))
        state, figures = distillation.iterate(given.network, found, state, given.labels, starts, given.settings, draws)
        losses.append(figures.matching_loss)

    measured = measure.iterations(iterate, setting.iterations, device)
    return measured | compiling | {"matching_losses": losses}


def image_gradient(found: Derivatives, given: Problem) -> torch.Tensor:
    """The gradient of the first iteration's matching loss with respect to the images, (S, C, H, W)."""
    syn_lr = torch.tensor(given.settings.lr_init).to(given.images)
    return inner_loop.matching_gradient(
        found, given.images, given.labels, syn_lr, given.snapshots[0], given.steps(0), given.way_points, given.rule
    ).images


def experts(setting: ExpertsSetting) -> dict[str, Any]:
    """Real images a second of an expert's training, in its second epoch."""
    _, device = start(setting)
    labels = torch.arange(setting.images) % setting.classes
    images = real_images(setting, labels, "real").to(device)
    settings = Experts(
        dataset="", network="", count=1, epochs=2, batch_size=setting.batch_size, lr=EXPERT_LR, momentum=EXPERT_MOMENTUM,
        augmentation=AUGMENTATION, gradient_penalty=setting.gradient_penalty,
    )  # fmt: skip
    draws = generator(setting.seed, "bench", "training")
    epochs = expert_training.train(build(setting, 0).to(device), images, labels.to(device), settings, draws)
    for _ in range(2):  # the initialisation and an epoch to warm up
        next(epochs)
    spent = measure.seconds(lambda: next(epochs), device)
    return {"seconds": spent, "images_per_second": setting.images / spent, **measure.surroundings(device)}


def evaluate(setting: EvaluateSetting) -> dict[str, Any]:
    """Seconds that the training of all students takes, after an epoch to warm up."""
    _, device = start(setting)
    labels = torch.arange(setting.classes).repeat_interleave(setting.ipc)
    images = real_images(setting, labels, "synthetic").to(device)
    modules = [build(setting, student) for student in range(setting.students)]
    thetas = torch.stack([flatten(module) for module in modules]).to(device)
    settings = Protocol(
        students=setting.students, epochs=setting.epochs + 1, batch_size=setting.batch_size, momentum=STUDENT_MOMENTUM,
        weight_decay=STUDENT_DECAY, augmentation=AUGMENTATION,
    )  # fmt: skip
    draws = [generator(setting.seed, "bench", "student", student) for student in range(setting.students)]
    ends: list[float] = []
    network = FlatNetwork(modules[0].to(device))
    protocol.train_students(
        network,
        thetas,
        images,
        labels.to(device),
        STUDENT_LR,
        settings,
        draws,
        on_epoch=lambda: ends.append(measure.now(device)),
    )
    return {"seconds": ends[-1] - ends[0], **measure.surroundings(device)}
