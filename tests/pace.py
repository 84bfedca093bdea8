"""How long the first minutes take beside another commit: `python -m tests.pace --against COMMIT`.

Each round times, alternately for both commits, `dvc repro` and `make repro`, each in a fresh clone without any cache, an
`evaluate` that finds everything finished, and the tests. With `--engine` it is what `bench` says of the engine: an iteration of
distillation (10 images a class, 30 steps, ConvNetD3 W128), experts and students. Both sides use the packages of the Python that
runs this, so that installation does not count. A ratio is paired: this commit's time over the other's in the same round. Leave
the machine alone meanwhile.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from tests.imports import ROOT

EVALUATE = (sys.executable, "-m", "src.cli", "evaluate", "--run", "digits-ipc1-ast")
COMMANDS = {
    "repro": ("dvc", "repro"),
    "make": ("make", "-o", ".venv/bin/.installed", "repro"),
    "evaluate": EVALUATE,
    "test": ("make", "-o", ".venv/bin/.installed", "test"),  # as if it were installed
}
BENCH = (sys.executable, "-m", "src.cli", "bench")
ENGINE = {  # name -> the command, and where in its JSON file the time stands (or images a second)
    "iteration": ((*BENCH, "--only", "engine"), ("engine", "seconds_per_iteration")),
    "experts": ((*BENCH, "experts", "--images", "2560"), ("without_penalty", "engine")),
    "experts, penalty": ((*BENCH, "experts", "--images", "2560"), ("with_penalty", "engine")),
    "students": ((*BENCH, "evaluate"), ("engine", "seconds")),
}
BESIDE = {"peak memory, MiB": ("engine", "peak_memory_mib"), "gradient error": ("gradient_error",)}  # of an iteration
PRECISIONS = ("float32", "bfloat16")
# a newer processor behaves as one with AVX2 alone
AVX2 = {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"}
FEATURES = ("avx2", "avx512_f", "avx512_bf16", "amx_bf16")  # that change what small and large networks take

Times = dict[str, dict[str, list[float]]]  # command -> side -> seconds of each round


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", required=True, metavar="COMMIT", help="the commit to compare with")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--what", nargs="+", choices=[*COMMANDS, *ENGINE], help="in this order; default: all")
    parser.add_argument("--engine", action="store_true", help="what `bench` measures, in every precision of --precision")
    parser.add_argument("--precision", nargs="+", choices=PRECISIONS, default=list(PRECISIONS), help="with --engine")
    parser.add_argument("--avx2", action="store_true", help="hide all instructions beyond AVX2")
    parser.add_argument("--json", type=Path, help="file to write all seconds to")
    asked = parser.parse_args()
    possible = ENGINE if asked.engine else COMMANDS
    what = [name for name in asked.what or possible if name in possible]
    commits = {"before": _commit(asked.against), "after": _commit("HEAD")}
    times: Times = defaultdict(lambda: defaultdict(list))
    for number in range(asked.rounds):
        sides = list(commits.items())
        for side, commit in sides if number % 2 == 0 else reversed(sides):
            with tempfile.TemporaryDirectory() as folder:
                if asked.engine:
                    _engine_round(Path(folder), commit, what, asked.precision, asked.avx2, side, times)
                else:
                    _round(Path(folder), commit, what, asked.avx2, side, times)
    Console().print(_table(times, asked.avx2))
    if asked.json is not None:
        asked.json.write_text(json.dumps({"commits": commits, "avx2": asked.avx2, "seconds": times}, indent=1))


def _commit(name: str) -> str:
    return subprocess.run(["git", "rev-parse", name], cwd=ROOT, check=True, capture_output=True, text=True).stdout.strip()


def _round(folder: Path, commit: str, what: list[str], avx2: bool, side: str, times: Times) -> None:
    """Every command in a clone of its own, but for `evaluate`, which comes after the pipeline of an earlier one."""
    clone = None
    for name in what:
        if name != "evaluate":
            clone = _cloned(folder / name, commit)
        elif clone is None:
            clone = _cloned(folder / name, commit)
            _seconds("repro", clone, avx2)
        spent = _seconds(name, clone, avx2)
        times[name][side].append(spent)
        print(f"{side} {commit[:7]} {name}: {spent:.1f} s", flush=True)


def _engine_round(
    folder: Path, commit: str, what: list[str], precisions: list[str], avx2: bool, side: str, times: Times
) -> None:
    """What `bench` measures, each command once, in a clone without compiled code."""
    clone, found = _cloned(folder / "engine", commit), folder / "found.json"
    for precision in precisions:
        told: dict[tuple[str, ...], Any] = {}
        for name in what:
            command, place = ENGINE[name]
            if command not in told:
                _run((*command, "--rounds", "1", "--precision", precision, "--json", str(found)), clone, avx2)
                told[command] = json.loads(found.read_text())
            value = _at(told[command], place)
            times[f"{name}, {precision}"][side].append(1000 / value if "experts" in name else value)
            print(f"{side} {commit[:7]} {name} {precision}: {value:.4g}", flush=True)
        for name, place in BESIDE.items() if "iteration" in what else ():
            times[f"{name}, {precision}"][side].append(_at(told[ENGINE["iteration"][0]], place))


def _at(found: Any, place: tuple[str, ...]) -> float:
    for key in place:
        found = found[key]
    return float(found)


def _cloned(clone: Path, commit: str) -> Path:
    subprocess.run(["git", "clone", "-q", str(ROOT), str(clone)], check=True)
    subprocess.run(["git", "checkout", "-q", commit], cwd=clone, check=True)
    return clone


def _seconds(name: str, clone: Path, avx2: bool) -> float:
    """Wall time of one command in the clone."""
    start = time.perf_counter()
    _run(COMMANDS[name], clone, avx2)
    return time.perf_counter() - start


def _run(command: tuple[str, ...], clone: Path, avx2: bool) -> None:
    """What it says is shown where it fails."""
    kept = {
        key: value for key, value in os.environ.items() if not key.startswith(("MLFLOW_", "AST_", "DVC_", "TORCHINDUCTOR_"))
    }
    path = f"{Path(sys.executable).parent}{os.pathsep}{kept['PATH']}"
    done = subprocess.run(
        command,
        cwd=clone,
        env={**kept, **(AVX2 if avx2 else {}), "PATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        words = " ".join(command[1:])
        sys.exit(f"{words} ended with {done.returncode} in {clone}:\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}")


def _table(times: Times, avx2: bool) -> Table:
    found = torch.cpu.get_capabilities()
    processor = ", ".join([str(found.get("cpu_name")), *(name for name in FEATURES if found.get(name))])
    table = Table(
        "seconds, median (experts: of 1,000 images)",
        "before",
        "after",
        "median of ratios",
        title=f"{processor}{', AVX2 alone' if avx2 else ''}",
    )
    for name, sides in times.items():
        before, after = sides["before"], sides["after"]
        ratio = statistics.median(new / old for old, new in zip(before, after, strict=True))
        table.add_row(name, f"{statistics.median(before):.3g}", f"{statistics.median(after):.3g}", f"{ratio:.2f}")
    return table


if __name__ == "__main__":
    main()
