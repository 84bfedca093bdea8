"""C++ of our own: built once for a kind of processor, and loaded."""

from __future__ import annotations

import ctypes
import hashlib
import os
import shlex
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch

from src.ground import host

FLAGS = ("-O3", "-std=c++17", "-shared", "-fPIC", "-fno-math-errno", "-fno-trapping-math")
ISA = {"AVX512": ("-march=x86-64-v4", "-mprefer-vector-width=512"), "AVX2": ("-march=x86-64-v3",)}  # as torch names them
THREADS = (("-fopenmp",), ())  # where the compiler knows no OpenMP, one thread


def library(module: str, name: str, macros: Sequence[str]) -> ctypes.CDLL:
    """The source `name` beside a module's file, built with these macros unless it was before.

    Raises OSError or CalledProcessError, with what the compiler said, where it can't be built.
    """
    source = Path(module).with_name(name)
    compiler = shlex.split(os.environ.get("CXX", "g++"))
    isa = ISA.get(torch.backends.cpu.get_cpu_capability(), ())
    command = [*compiler, *FLAGS, *isa, *(f"-D{macro}" for macro in macros)]
    version = subprocess.run([*compiler, "--version"], capture_output=True, check=True).stdout
    digest = hashlib.sha256(source.read_bytes() + version + " ".join(command).encode()).hexdigest()[:16]
    place = host.compiled_code() / "own" / f"{source.stem}-{digest}.so"
    if not place.exists():
        place.parent.mkdir(parents=True, exist_ok=True)
        _build(command, source, place)
    return ctypes.CDLL(str(place))


def _build(command: list[str], source: Path, place: Path) -> None:
    """Complete or not at all, also where several processes build the same."""
    for threads in THREADS:
        with tempfile.TemporaryDirectory(dir=place.parent) as folder:
            made = Path(folder) / place.name
            found = subprocess.run(
                [*command, *threads, str(source), "-o", str(made)], capture_output=True, text=True, check=False
            )
            if found.returncode == 0:
                made.replace(place)
                return
    found.check_returncode()


def said(error: OSError | subprocess.CalledProcessError) -> str:
    """Why it could not be built, in a line."""
    text = error.stderr if isinstance(error, subprocess.CalledProcessError) and error.stderr else str(error)
    lines = str(text).splitlines()
    return next((line for line in lines if "error" in line), lines[0]).strip()
