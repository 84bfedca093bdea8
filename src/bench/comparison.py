"""The parent of the workers: starts them alternately and puts their figures side by side. Imports no torch."""

from __future__ import annotations

import os
import platform
import statistics
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

from src.bench import process
from src.bench.settings import EvaluateSetting, ExpertsSetting, MatchingSetting, Setting, Side, Task
from src.ground.errors import UserError
from src.process import progress

SIDES: tuple[Side, ...] = ("engine", "plain")
PENALTY = 2.0  # AST's weight of the gradient penalty
Figures = dict[str, Any]
Found = Mapping[Side, Sequence[Figures]]  # of each side, what it measured in each round


def matching(setting: MatchingSetting, rounds: int, only: Side | None = None) -> Figures:
    """Iterations of the outer loop: seconds, memory, exactness, and the share of the machine's speed they reach."""
    sides = SIDES if only is None else (only,)
    with empty_cache() as cache:
        found = _alternate("matching", setting, sides, rounds, "seconds_per_iteration", cache)
        result: Figures = {side: _iterations(found[side]) for side in sides}
        if only is None:
            result["ratio"] = ratio(found, "seconds_per_iteration")
            result["memory_ratio"] = result["plain"]["peak_memory_mib"] / result["engine"]["peak_memory_mib"]
        if only != "plain":
            result |= _error(setting, cache)
        result |= _shares(setting, result, process.ask("peak", "engine", setting, cache), sides)
    return result | _described(setting, rounds, found)


def experts(setting: ExpertsSetting, rounds: int) -> Figures:
    """Real images a second of expert training, without and with the gradient penalty."""
    result: Figures = {}
    for name, weight in (("without_penalty", 0.0), ("with_penalty", PENALTY)):
        asked = setting.model_copy(update={"gradient_penalty": weight})
        with empty_cache() as cache:
            found = _alternate("experts", asked, SIDES, rounds, "images_per_second", cache)
        speeds = {side: _median(found[side], "images_per_second") for side in SIDES}
        result[name] = {**speeds, "ratio": ratio(found, "seconds"), "processes": found["engine"][0]["processes"]}
    return result | _described(asked, rounds, found)


def evaluate(setting: EvaluateSetting, rounds: int) -> Figures:
    """Seconds of the training of all students of an evaluation."""
    with empty_cache() as cache:
        found = _alternate("evaluate", setting, SIDES, rounds, "seconds", cache)
    result: Figures = {side: {"seconds": _median(found[side], "seconds")} for side in SIDES}
    result |= {"ratio": ratio(found, "seconds"), "processes": found["engine"][0]["processes"]}
    return result | _described(setting, rounds, found)


def ratio(found: Found, name: str) -> float:
    """plain / engine: the median of the rounds' own ratios, so that a busy minute spoils one round and not the result."""
    pairs = zip(found["plain"], found["engine"], strict=True)
    return float(statistics.median(plain[name] / engine[name] for plain, engine in pairs))


@contextmanager
def empty_cache() -> Iterator[Path]:
    """An empty folder for compiled code, so that the first round pays for compiling as a first run would."""
    with tempfile.TemporaryDirectory(prefix="ast-bench-", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


def _alternate(task: Task, setting: Setting, sides: Sequence[Side], rounds: int, name: str, cache: Path) -> Found:
    """A B A B: each measurement in a process of its own."""
    found: dict[Side, list[Figures]] = {side: [] for side in sides}
    for number in range(1, rounds + 1):
        for side in sides:
            figures = process.ask(task, side, setting, cache)
            found[side].append(figures)
            note = f" ({figures['note']})" if figures.get("note") else ""
            progress.say(f"round {number} of {rounds}, {side}: {figures[name]:.4g} {name.replace('_', ' ')}{note}")
    return found


def _median(figures: Sequence[Figures], name: str) -> float:
    return float(statistics.median(one[name] for one in figures))


def _iterations(figures: Sequence[Figures]) -> Figures:
    """One side's figures over the rounds: the median time, the largest memory, compiling from an empty cache and a full one."""
    result: Figures = {
        "seconds_per_iteration": _median(figures, "seconds_per_iteration"),
        "seconds_per_iteration_of_rounds": [one["seconds_per_iteration"] for one in figures],
        "peak_memory_mib": max(one["peak_memory_mib"] for one in figures),
        "matching_losses": figures[0]["matching_losses"],
    }
    if "backend" in figures[0]:
        result |= {"backend": figures[0]["backend"], "compile_seconds": figures[0]["compile_seconds"]}
        result["cached_compile_seconds"] = figures[1]["compile_seconds"] if len(figures) > 1 else None
    return result


def _error(setting: MatchingSetting, cache: Path) -> Figures:
    """Relative error of the image gradient; none where the machine can't hold the float64 reference."""
    try:
        found = process.ask("error", "engine", setting, cache)
    except UserError as problem:
        progress.say(f"no gradient error: {problem}")
        found = {"errors": {"engine": None, "plain": None}, "steps": setting.for_error().syn_steps}
    errors = found["errors"]
    return {
        "gradient_error": errors["engine"],
        "plain_gradient_error": errors["plain"],
        "gradient_error_steps": found["steps"],
    }


def _shares(setting: MatchingSetting, result: Figures, peak: Figures, sides: Sequence[Side]) -> Figures:
    """GFLOP/s that each side reached, and its share of what the convolution alone reaches in that side's precision."""
    gflops = {side: peak["work"][side] / result[side]["seconds_per_iteration"] / 1e9 for side in sides}
    precision = {"plain": "float32", "engine": kernels(setting.precision)}
    shares = {side: gflops[side] / peak["gflops"][precision[side]] for side in sides}
    return {"gflops": gflops, "peak_gflops": peak["gflops"], "share_of_peak": shares}


def kernels(precision: str) -> str:
    """What the convolution alone is measured in: TF32 is a way of float32 kernels."""
    return "bfloat16" if precision == "bfloat16" else "float32"


def _described(setting: Setting, rounds: int, found: Found) -> Figures:
    """The setting and the machine, without which the figures mean nothing."""
    one = list(found.values())[-1][0]
    machine = {
        "cpu": _cpu(), "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": one["threads"], "device": one["device"], "torch": version("torch"), "python": platform.python_version(),
    }  # fmt: skip
    return {"setting": {**setting.model_dump(), "rounds": rounds}, "machine": machine}


def _cpu() -> str:
    """The processor's name, where the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
