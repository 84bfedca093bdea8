"""What `bench` shows on the screen: a row a quantity, a column a side, and how many times better the engine is."""

from __future__ import annotations

from typing import Any

from src.bench.comparison import kernels
from src.bench.gpu import summary
from src.pages.tables import Table

Figures = dict[str, Any]
COLUMNS = ("plain", "engine")


def matching(found: Figures) -> Table:
    """Iterations of the outer loop."""
    table = _table("one iteration")
    _row(table, "seconds", _of(found, "seconds_per_iteration"), ".3g", found.get("ratio"))
    _row(table, "peak memory, MiB", _of(found, "peak_memory_mib"), ",.0f", found.get("memory_ratio"))
    _row(table, "GFLOP/s", found["gflops"], ".3g")
    _row(table, "GFLOP/s of the convolution alone, at its best", _peaks(found), ".3g")
    _row(table, "share of it", found["share_of_peak"], ".0%")
    if "gradient_error" in found:
        errors = {"plain": found["plain_gradient_error"], "engine": found["gradient_error"]}
        _row(table, f"gradient error over {found['gradient_error_steps']} steps", errors, ".1e")
    _row(table, "building code, s", _of(found, "compile_seconds"), ".3g")
    _row(table, "again, from the cache, s", _of(found, "cached_compile_seconds"), ".3g")
    return table


def experts(found: Figures) -> Table:
    """Expert training."""
    table = _table("images a second")
    for name in ("without_penalty", "with_penalty"):
        _row(table, name.replace("_", " gradient "), found[name], ".4g", found[name]["ratio"])
    table.add_row("processes", "1", str(found["with_penalty"]["processes"]), "")
    return table


def evaluate(found: Figures) -> Table:
    """Training of all students."""
    table = _table("training of all students")
    _row(table, "seconds", _of(found, "seconds"), ".3g", found["ratio"])
    table.add_row("processes", "1", str(found["processes"]), "")
    return table


def gpu(found: Figures) -> Table:
    """What was measured on a GPU, and beside it what is published."""
    table = Table(
        f"{found['machine']['device']}, torch {found['machine']['torch']}",
        "side",
        "precision",
        "result",
        "GiB",
        "compiled in, s",
    )
    for one in found["measurements"]:
        figures = one.get("figures", {})
        peak, spent = (
            figures.get("peak_memory_mib"),
            figures.get("compile_seconds") if figures.get("backend") in ("compiled", "fused") else None,
        )
        precision = one["setting"]["precision"] if one["side"] == "engine" else "torch's own"
        gib = None if peak is None else peak / 1024
        table.add_row(one["name"], one["side"], precision, summary(one), _cell(gib, ".2f"), _cell(spent, ".3g"))
    for method, (seconds, gib) in found["published"].items():
        table.add_row("CIFAR-100 ipc 10, published for an A100 80 GB", method, "", f"{seconds} s", _cell(gib, ".1f"), "")
    return table


def conditions(found: Figures) -> str:
    """Two lines: the setting and the machine that the figures hold for."""
    setting = ", ".join(f"{name} {value}" for name, value in found["setting"].items() if name != "seed")
    return "{setting}\n{cpu}, {cores} cores, {threads} threads, {device}, torch {torch}".format(
        setting=setting, **found["machine"]
    )


def _table(title: str) -> Table:
    table = Table(title)
    for heading in (*COLUMNS, "gain"):
        table.add_column(heading, justify="right")
    return table


def _of(found: Figures, name: str) -> Figures:
    """One quantity of both sides, as far as they have it."""
    return {side: found.get(side, {}).get(name) for side in COLUMNS}


def _peaks(found: Figures) -> Figures:
    """What each side could reach, in its precision."""
    return {"plain": found["peak_gflops"]["float32"], "engine": found["peak_gflops"][kernels(found["setting"]["precision"])]}


def _row(table: Table, title: str, values: Figures, style: str, gain: float | None = None) -> None:
    table.add_row(title, *(_cell(values.get(side), style) for side in COLUMNS), _cell(gain, ".3g"))


def _cell(value: float | None, style: str) -> str:
    return "" if value is None else format(value, style)
