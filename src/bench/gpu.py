"""What to measure in the minutes that one has a GPU: in order of worth, each in a process of its own, until the time is over.

A measurement gets half of the time that is left at most, so that one that hangs leaves time for the others. Imports no torch.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from src.bench import comparison, process
from src.bench.settings import EvaluateSetting, ExpertsSetting, MatchingSetting, Setting, Side, Task
from src.ground.errors import UserError
from src.process import progress

Figures = dict[str, Any]
SHARE = 0.5  # of the time left
LEAST = 15.0  # seconds that a measurement needs to begin
REAL_EXPERT = 50 * 50_000  # images that one sees in its training: the field's
# seconds and GiB of an iteration on CIFAR-100 with 10 images per class, as published for an A100 of 80 GB
PUBLISHED = {"MTT": (1.92, 61.6), "TESLA": (5.71, 10.3), "FTD": (1.68, 61.4)}


@dataclass(frozen=True)
class Measurement:
    """One process."""

    name: str
    task: Task
    side: Side
    setting: Setting


def measurements(device: str = "cuda", **sizes: Any) -> list[Measurement]:
    """All, those of most worth first. `sizes` are fields of the settings that take the place of the real ones."""

    def matching(classes: int, ipc: int, syn_steps: int, side: Side, precision: str = "tf32") -> Measurement:
        own = {
            "classes": classes,
            "ipc": ipc,
            "syn_steps": syn_steps,
            "iterations": 3,
            "precision": precision,
            "device": device,
        }
        name = f"an iteration, CIFAR-{classes} ipc {ipc}, {syn_steps} steps"
        return Measurement(name, "matching", side, MatchingSetting(**{**own, **sizes.get("matching", {})}))

    def experts(name: str, task: Task, side: Side, penalty: float = 0.0) -> Measurement:
        own = {"images": 10_240, "precision": "tf32", "device": device, "gradient_penalty": penalty}
        return Measurement(name, task, side, ExpertsSetting(**{**own, **sizes.get("experts", {})}))

    def evaluate(side: Side) -> Measurement:
        own = {"ipc": 10, "epochs": 300, "precision": "tf32", "device": device}
        return Measurement(
            "five students, CIFAR-10 ipc 10, 300 epochs",
            "evaluate",
            side,
            EvaluateSetting(**{**own, **sizes.get("evaluate", {})}),
        )

    return [
        matching(100, 10, 20, "engine"),
        matching(100, 10, 20, "plain"),
        experts("experts side by side", "experts_together", "engine"),
        experts("experts, one alone", "experts", "engine"),
        evaluate("engine"),
        matching(10, 10, 30, "engine"),
        matching(10, 10, 30, "plain"),
        matching(100, 10, 20, "engine", "bfloat16"),
        matching(100, 10, 20, "engine", "float32"),
        matching(10, 50, 30, "engine"),
        matching(10, 50, 30, "plain"),
        experts("experts side by side, gradient penalty", "experts_together", "engine", comparison.PENALTY),
        experts("experts, one alone", "experts", "plain"),
        evaluate("plain"),
    ]


def run(
    minutes: float,
    asked: Sequence[Measurement],
    keep: Callable[[Figures], None],
    clock: Callable[[], float] = time.monotonic,
) -> Figures:
    """What was measured in time. `keep` gets all that there is after each measurement.

    Raises UserError where there is no GPU, though the settings ask for one.
    """
    end = clock() + 60 * minutes
    with comparison.empty_cache() as cache:
        machine = _machine(asked[0].setting.device, cache, end - clock())
        found: list[Figures] = []
        whole: Figures = {"machine": machine, "minutes": minutes, "published": PUBLISHED, "measurements": found}
        for one in asked:
            begun = clock()
            found.append({**_described(one), **_measured(one, cache, SHARE * (end - begun))})
            found[-1]["wall_seconds"] = clock() - begun
            progress.say(f"{one.name}, {one.side}: {summary(found[-1])}")
            keep(whole)
    return whole


def _machine(device: str, cache: Path, seconds: float) -> Figures:
    found = process.ask("machine", "engine", Setting(device="cpu" if device == "cpu" else "auto"), cache, seconds)
    if device == "cuda" and "cuda" not in found:
        raise UserError("bench gpu measures a GPU, but torch finds none here: run it on a machine that has one")
    return found


def _described(one: Measurement) -> Figures:
    return {"name": one.name, "task": one.task, "side": one.side, "setting": one.setting.model_dump()}


def _measured(one: Measurement, cache: Path, seconds: float) -> Figures:
    """The figures, or what kept them from being taken."""
    if seconds < LEAST:
        return {"failed": "no time left"}
    try:
        return {"figures": process.ask(one.task, one.side, one.setting, cache, seconds)}
    except UserError as problem:
        if "memory ran out" in str(problem):
            return {"failed": "out of memory"}
        return {"failed": f"not done in {seconds:.0f} s" if "was not done" in str(problem) else str(problem)}


def summary(found: Mapping[str, Any]) -> str:
    """A measurement's result in words."""
    if "failed" in found:
        return str(found["failed"])
    figures = found["figures"]
    if found["task"] == "matching":
        return f"{figures['seconds_per_iteration']:.3g} s"
    if found["task"] == "evaluate":
        return f"{figures['seconds']:.3g} s"
    several = f", {figures['experts']} at once" if "experts" in figures else ""
    return f"{60 * figures['images_per_second'] / REAL_EXPERT:.3g} experts a minute{several}"
