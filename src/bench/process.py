"""A measurement in a process of its own: started, waited for, and its failure put into one sentence."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from src.bench.settings import Setting, Side, Task
from src.ground.errors import UserError

REMEDY = "make the setting smaller (--ipc, --syn-steps, --width, --size), or measure the other side alone with --only"
RAISED = re.compile(r"[\w.]*(Error|Exception|Interrupt)\b")
TOP = Path(__file__).parents[2]


def ask(task: Task, side: Side, setting: Setting, cache: Path, seconds: float | None = None) -> dict[str, Any]:
    """The figures that one worker measured; `cache` is where it keeps what it compiles.

    Raises UserError where the worker failed or was killed, as it is after so many seconds.
    """
    request = json.dumps({"task": task, "side": side, "setting": setting.model_dump()})
    with _started([sys.executable, "-m", "src.bench.worker", request], _environment(side, cache)) as worker:
        try:
            output, errors = worker.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            raise UserError(f"the worker '{side} {task}' was not done after {seconds:.0f} s: {REMEDY}") from None
    return answer(f"{side} {task}", worker.returncode, output, errors)


@contextmanager
def _started(command: list[str], environment: dict[str, str]) -> Iterator[subprocess.Popen[str]]:
    """A process in a session of its own, out of Ctrl-C's reach: it ends with the block, and all that it started with it."""
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=environment, start_new_session=True) as worker:
        try:
            yield worker
        finally:
            with suppress(ProcessLookupError):
                os.killpg(worker.pid, signal.SIGKILL)


def answer(name: str, code: int, output: str, errors: str) -> dict[str, Any]:
    """The JSON line that a worker left on its stdout; raises UserError where there is none or it tells of an error."""
    if code < 0:
        found = signal.Signals(-code).name
        likely = ", most likely because memory ran out" if found == "SIGKILL" else ""
        raise UserError(f"the worker '{name}' was killed by {found}{likely}: {REMEDY}")
    try:
        figures: dict[str, Any] = json.loads(output.splitlines()[-1])
    except (ValueError, IndexError):
        raise UserError(f"the worker '{name}' failed with exit code {code}: {_cause(errors)}") from None
    if "error" in figures:
        raise UserError(f"the worker '{name}' failed: {figures['error']}")
    return figures


def _cause(errors: str) -> str:
    """The line of a traceback that names the error; advice may follow it."""
    lines = [line.strip() for line in errors.splitlines() if line.strip()]
    return ([line for line in lines if RAISED.match(line)] or lines or ["it said nothing"])[-1]


def _environment(side: Side, cache: Path) -> dict[str, str]:
    """The plain way gets the allocator as glibc has it, whatever this shell tells it."""
    kept = {k: v for k, v in os.environ.items() if side == "engine" or not k.startswith("MALLOC_")}
    path = os.pathsep.join([str(TOP), *filter(None, [kept.get("PYTHONPATH")])])
    return {**kept, "PYTHONPATH": path, "TORCHINDUCTOR_CACHE_DIR": str(cache)}
