"""repro: what `dvc repro` runs, with stages that need nothing of each other at once, as many as the cores hold.

DVC runs every stage, one process a stage, and records it as ever: this only chooses the order. No stage itself.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
from collections.abc import Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from functools import partial

from src.ground import host
from src.ground.counting import counted
from src.ground.errors import UserError, installing
from src.process.progress import say
from src.settings.resolved import Pipeline

RESOLVE, REPORT = "resolve", "report"

Process = subprocess.Popen[str]
Needs = Mapping[str, frozenset[str]]  # stage -> stages that go before it


def run(pipeline: Pipeline, jobs: int | None) -> None:
    """Run all that is out of date. Raises UserError with the stages that failed, after the others have ended."""
    cores = host.cores()
    count = jobs or max(1, cores // (pipeline.runtime.threads or cores))
    if RESOLVE in _changed() and _run_one(RESOLVE, cores, set()):  # what the other stages depend on: a second's work
        raise UserError(f"{RESOLVE} failed, see above: mend that, and run this again")
    needs = _needs(pipeline)
    left = _outdated(needs)
    if not left:
        return say("Data and pipelines are up to date")
    say(f"{counted(len(left), 'stage')} to run, {count} at once")
    failed = _run_all({name: needs[name] & left for name in needs if name in left}, count, max(1, cores // count))
    if failed:
        raise UserError(f"{', '.join(failed)} failed, see above: mend that, and run this again")
    return None


def _needs(pipeline: Pipeline) -> Needs:
    """The pipeline of dvc.yaml, in the order of params.yaml."""
    found: dict[str, frozenset[str]] = {f"prepare@{name}": frozenset() for name in pipeline.data_sets}
    found |= {f"experts@{name}": frozenset({f"prepare@{own.dataset.name}"}) for name, own in pipeline.buffers.items()}
    for run in sorted(pipeline.runs.values(), key=lambda run: len(run.initials)):
        before = f"prepare@{run.dataset.name}" if run.buffer is None else f"experts@{run.buffer.name}"
        found[f"distill@{run.name}"] = frozenset({before, *(f"distill@{one.name}" for one in run.initials)})
    for name in pipeline.runs:
        found[f"evaluate@{name}"] = frozenset({f"distill@{name}"})
    return {**found, REPORT: frozenset(found)}


def _outdated(needs: Needs) -> frozenset[str]:
    """Stages that DVC calls changed, and all that come after them: DVC itself passes over those that then need no run."""
    changed = _changed()
    for name, before in needs.items():  # each stands behind those it needs
        if before & changed:
            changed |= {name}
    return changed & needs.keys()


def _changed() -> frozenset[str]:
    with _dvc("status", "--json", stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        found, errors = process.communicate()
    if process.returncode:
        raise UserError(f"dvc status failed: {errors.strip() or 'it says nothing'}")
    return frozenset(json.loads(found))


def _run_all(needs: Needs, count: int, cores: int) -> list[str]:
    """Run stages as those that they need are done; names those that failed. No further one is begun then."""
    waiting, done, failed, processes = dict(needs), set[str](), list[str](), set[Process]()
    with ThreadPoolExecutor(count) as pool:
        running: dict[Future[int], str] = {}
        try:
            while waiting or running:
                for name in [] if failed else list(_ready(waiting, done))[: count - len(running)]:
                    running[pool.submit(partial(_run_one, name, cores, processes))] = name
                    del waiting[name]
                if not running:
                    break
                for one in wait(running, return_when=FIRST_COMPLETED).done:
                    name = running.pop(one)
                    (failed.append if one.result() else done.add)(name)
        except KeyboardInterrupt:
            _end(processes)
            wait(running)
            raise
    return failed


def _ready(waiting: Needs, done: set[str]) -> Iterator[str]:
    return (name for name, before in waiting.items() if before <= done)


def _end(processes: set[Process]) -> None:
    """Have the stages end at a good moment, whether or not they got the signal as well; DVC then ends by itself."""
    import psutil

    for one in tuple(processes):
        with contextlib.suppress(psutil.NoSuchProcess):  # it has just ended
            found = psutil.Process(one.pid)
            for stage in found.children() or [found]:  # before DVC has begun it, there is DVC alone
                stage.terminate()


def _run_one(name: str, cores: int, processes: set[Process]) -> int:
    """One stage by DVC, on its share of the cores; its exit code. DVC itself works one at a time, and waits for that."""
    say(f"{name} begins")
    words = ("--wait-for-lock", "repro", "--quiet", "--single-item", name)
    with _dvc(*words, env={**os.environ, "LOKY_MAX_CPU_COUNT": str(cores)}) as process:
        processes.add(process)
        code = process.wait()
        processes.remove(process)
    return code


def _dvc(*words: str, **options: object) -> Process:
    try:
        return subprocess.Popen(["dvc", *words], text=True, **options)  # type: ignore[call-overload, no-any-return]
    except FileNotFoundError:
        raise UserError(f"dvc is not on the PATH: {installing()}") from None
