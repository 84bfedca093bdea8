"""What the machine lends to a stage: the device, the threads, reproducible kernels."""

from __future__ import annotations

import ctypes
import gc
import os
import re
import resource
import shlex
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import ParamSpec, TypeVar

import torch
from torch.utils._triton import has_triton

from src.ground import host
from src.ground.errors import UserError
from src.settings.runtime import Runtime

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # glibc's malloc.h

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")

HEADERS = "#include <cmath>\n#include <omp.h>\n#include <Python.h>\n"
C_COMPILERS = ("gcc", "clang")  # which Triton looks for
PYTHON = "#include <Python.h>\n"  # which it includes
SHAPES = 2**14  # of all fused functions of a process, which torch counts as one: a dozen for each network and size of batch
COMPILE_FLOPS = 5e13  # some minutes of eager work on two cores, several times what compiling costs


def start(runtime: Runtime) -> torch.device:
    """Set the allocator, the threads and reproducible kernels, and choose the device.

    Raises UserError where the device asked for is not there.
    """
    _keep_memory()
    if runtime.threads is not None:
        torch.set_num_threads(runtime.threads)
    if runtime.device == "cuda" and not torch.cuda.is_available():
        raise UserError("runtime.device is 'cuda', but torch finds no CUDA device: set it to 'auto' or 'cpu'")
    wanted = "cuda" if runtime.device == "auto" and torch.cuda.is_available() else runtime.device
    device = torch.device("cpu" if wanted == "auto" else wanted)
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # asked for by reproducible cuBLAS
    # on CUDA the gradient of DSA's scale and rotate through grid_sample has no reproducible kernel: warn, and go on
    # not use_deterministic_algorithms: it loads the compiler, two seconds, which `compiled` alone needs
    mode = "warn" if device.type == "cuda" else "error"
    torch.set_deterministic_debug_mode(mode if runtime.deterministic else "default")
    torch.backends.cudnn.benchmark = not runtime.deterministic
    if device.type == "cuda":  # torch's default is TF32 in convolutions alone
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = runtime.precision == "tf32"
    # all that is read was written before: filling new memory for reproducible mistakes costs 3 to 15 %
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    return device


def numerics() -> tuple[int, bool, bool]:
    """What `start` has set that kernels are chosen by: a graph of them, once captured, keeps to its own."""
    return torch.get_deterministic_debug_mode(), torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.benchmark


def precision_note(runtime: Runtime, device: torch.device) -> str:
    """A sentence for the user where the device hasn't the precision asked for; empty elsewhere."""
    if device.type != "cpu" or runtime.precision == "float32":
        return ""
    if runtime.precision == "tf32":
        return "runtime.precision is 'tf32', which CPUs do not have: this is float32"
    if _has_bfloat16():
        return ""
    return (
        "runtime.precision is 'bfloat16', for which this processor has no instructions: it takes several times as long as "
        "float32, set it to 'float32'"
    )


def _has_bfloat16() -> bool:
    """Whether the processor has instructions for it: avx512_bf16 or amx_bf16 of x86, bf16 or sve_bf16 of ARM."""
    return any(present for name, present in torch.cpu.get_capabilities().items() if name.endswith("bf16"))


def compiles(runtime: Runtime, flops: float) -> tuple[bool, str]:
    """Whether to compile a loop of so many floating-point operations, and a sentence for the user where there is one.

    The choice rests on the amount of work alone, never on a timing: compiled code rounds differently, and the same
    parameters must give the same bytes.
    """
    if runtime.compile == "off" or (runtime.compile == "auto" and flops < COMPILE_FLOPS):
        return False, ""
    problem = _problem("C++", shlex.split(os.environ.get("CXX") or "g++"), HEADERS, "CXX", "this runs eagerly")
    if problem:
        return False, problem
    _keep_compiled()
    return True, "compiling; the first time takes about a minute"


def compiled(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """`function` as one graph, compiled anew for each shape of its arguments; gradients that it takes are traced too."""
    _keep_compiled()
    tell_compiler()
    torch._dynamo.config.trace_autograd_ops = True
    torch._dynamo.reset()  # what it keeps of earlier functions counts towards a limit of recompilations
    return torch.compile(function, fullgraph=True, dynamic=False)


def tell_compiler() -> None:
    """Whether the same bytes are to come again: torch's debug mode, which `start` sets, does not."""
    warns = torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(torch.are_deterministic_algorithms_enabled(), warn_only=warns)


def fused(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """`function`, which asks for no gradients, in a few kernels for each shape of its arguments."""
    _keep_compiled()
    torch._dynamo.config.recompile_limit = torch._dynamo.config.accumulated_recompile_limit = SHAPES
    return torch.compile(function, fullgraph=True, dynamic=False)


def fuses() -> tuple[bool, str]:
    """Whether `fused` can make kernels for a GPU here, and a sentence for the user where it can't."""
    if not has_triton():
        return False, "torch has no Triton for this GPU, so steps take some three times as long"
    compiler = os.environ.get("CC") or next(filter(shutil.which, C_COMPILERS), C_COMPILERS[0])
    problem = _problem("C", [compiler], PYTHON, "CC", "steps take some three times as long")
    return not problem, problem


def _problem(language: str, command: list[str], headers: str, variable: str, therefore: str) -> str:
    """What keeps a compiler from building torch's code, in a sentence; empty where nothing does."""
    named = f"the {language} compiler '{shlex.join(command)}'"
    if shutil.which(command[0]) is None:
        usual = {"C": "gcc", "C++": "g++"}[language]
        return f"{named} is not found, so {therefore}: install {usual}, or let {variable} name one"
    error = _first_error(command, language.lower(), headers)
    return f"{named} does not work, so {therefore}: {error}" if error else ""


def _first_error(compiler: list[str], language: str, headers: str) -> str:
    """What keeps the compiler from reading the headers of torch's compiled code; empty where nothing does."""
    command = [*compiler, "-fsyntax-only", f"-I{sysconfig.get_path('include')}", "-x", language, "-"]
    found = subprocess.run(command, input=headers, text=True, capture_output=True, check=False)
    said = [line for line in found.stderr.splitlines() if "error" in line] or [f"exit code {found.returncode}"]
    return said[0].strip() if found.returncode else ""


def _keep_compiled() -> None:
    """Keep compiled code from run to run, unless the user has a place for it."""
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(host.compiled_code()))


def _keep_memory() -> None:
    """Let glibc keep freed memory: by default it maps and unmaps large tensors at every use, half of a step's time."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def give_memory_back() -> None:
    """Return freed memory that glibc or CUDA kept: to be called where work ends and other work may follow."""
    if torch.cuda.is_initialized():
        gc.collect()  # derivatives and their recordings hold each other
        torch.cuda.empty_cache()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)


def peak_memory_mib(device: torch.device) -> float:
    """Largest memory this process has held: on the device for CUDA, resident otherwise, in MiB."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    status = Path("/proc/self/status")  # getrusage's begins with what the process had that started this one
    if status.exists():
        return int(re.findall(r"VmHWM:\s*(\d+) kB", status.read_text(encoding="ascii"))[0]) / 2**10
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10
