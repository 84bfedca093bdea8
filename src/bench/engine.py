"""This repository's own way of an iteration of distillation, through the functions that the stage calls."""

from __future__ import annotations

from typing import Any

import torch

from src.bench import measure
from src.bench.problem import Problem, matching_problem, spec
from src.bench.settings import MatchingSetting, Setting
from src.ground import runtime
from src.maths import distillation, inner_loop
from src.maths.derivatives import PASSES, Derivatives, choose
from src.maths.distillation import Start
from src.settings.runtime import Runtime
from src.store import cost

REAL_ITERATIONS = 5_000  # of the papers' runs: what compile 'auto' decides by


def start(setting: Setting) -> tuple[Runtime, torch.device]:
    """The runtime that the setting asks for, started."""
    asked = Runtime(
        device=setting.device, precision=setting.precision, compile=setting.compile, workers=setting.workers,
        memory_mib=setting.memory_mib if isinstance(setting, MatchingSetting) else 0,
    )  # fmt: skip
    return asked, runtime.start(asked)


def derivatives(setting: MatchingSetting, given: Problem, asked: Runtime) -> tuple[Derivatives, dict[str, Any]]:
    """As a real run would have them, and what building or compiling them took: seconds, 0 where it is off."""
    flops = PASSES * REAL_ITERATIONS * setting.syn_steps * setting.count * forward(given)
    theta, device = given.snapshots[0], given.images.device
    begun = cost.now(device)
    backend, reason = choose(asked, device, spec(setting), flops)
    found = Derivatives(given.network, setting.precision == "bfloat16", backend, asked.memory_mib)
    spent = 0.0
    if backend != "eager":
        _both(found, given, theta)
        first = cost.now(device) - begun
        spent = max(first - cost.seconds(lambda: _both(found, given, theta), device), 0.0)
    return found, {"compile_seconds": spent, "backend": backend, "note": reason}


def forward(given: Problem) -> int:
    """Floating-point operations of one image's forward pass."""
    return given.network.forward_flops(given.images[:1])


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
