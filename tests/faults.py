"""Injects faults into a tiny pipeline and counts what becomes of them: `python -m tests.faults --rounds 200`.

A round damages one file and runs a command that reads it, or lets the file system fail while a stage writes. Every fault must
be detected (a sentence, exit code not 0, no traceback, nothing half-written at a final path) or survived (the bytes of an
undisturbed run); and then the command that the sentence names, or the same one without the fault, must end in these bytes.
What only the report and DVC read also counts as detected where `dvc status` says that it has changed. A round that ends in
anything else is printed, and `--seed N --rounds 1` repeats it.
"""

from __future__ import annotations

import argparse
import errno
import os
import random
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mlflow.store.tracking.sqlalchemy_store  # noqa: F401, here once and not in every child
import safetensors.torch
from rich.console import Console
from rich.table import Table
from ruamel.yaml import YAML

from src import cli
from src.ground.errors import InterruptedWorkError
from src.process import stopping
from src.stages import distill, evaluate, experts, prepare, report  # noqa: F401, as above
from src.store import files
from tests.imports import ROOT
from tests.test_pipeline import call, tiny

RUN, OTHER, DATASET, EXPERTS = "digits-ipc1-ast", "digits-ipc1-random", "digits", "digits-smooth"
COMMANDS = {
    "prepare": ("prepare", "--dataset", DATASET),
    "experts": ("experts", "--experts", EXPERTS),
    "distill": ("distill", "--run", RUN),
    "evaluate": ("evaluate", "--run", RUN),
    "report": ("report",),
}
TARGETS = {"prepare": DATASET, "experts": EXPERTS, "distill": RUN, "evaluate": RUN}
FOLDERS = {**{stage: f"data/{stage}/{name}" for stage, name in TARGETS.items()}, "report": "data/report"}
READERS: dict[str, dict[str, tuple[str, ...]]] = {  # kind -> file -> stages that read it; none but the report and DVC: ()
    "split": {
        f"data/prepare/{DATASET}/train.safetensors": ("experts", "distill", "report"),
        f"data/prepare/{DATASET}/val.safetensors": ("experts", "evaluate"),
        f"data/prepare/{DATASET}/test.safetensors": ("evaluate",),
    },
    "space": {f"data/prepare/{DATASET}/space.safetensors": ("experts", "distill", "evaluate")},
    "statistics": {f"data/prepare/{DATASET}/statistics.json": ("experts", "distill", "evaluate", "report")},
    "trajectory": {f"data/experts/{EXPERTS}/trajectories/{index:03d}.safetensors": ("distill", "report") for index in range(2)},
    "synthetic set": {f"data/distill/{RUN}/synthetic.safetensors": ("evaluate", "report")},
    "snapshots": {f"data/distill/{RUN}/snapshots.safetensors": ("evaluate", "report")},
    "scores": {
        f"data/evaluate/{RUN}/scores.json": ("report",),
        f"data/evaluate/{RUN}/students.csv": ("report",),
        f"data/evaluate/{RUN}/networks.csv": ("report",),
        f"data/metrics/{RUN}.json": ("report",),
    },
    "table": {
        f"data/experts/{EXPERTS}/curves.csv": (),
        f"data/distill/{RUN}/history.csv": (),
        f"data/evaluate/{RUN}/predictions.csv": (),
        "data/report/report.md": (),
    },
}
INTERRUPTED = ("experts", "distill", "evaluate")
DETECTED, SURVIVED, MISSED = "detected", "survived", "missed"

Child = Callable[[], None]  # what a process does before it runs its command
Content = dict[str, bytes]  # path -> bytes


def nothing() -> None:
    """An undisturbed child."""


def run(folder: Path, words: tuple[str, ...], child: Child = nothing) -> tuple[int, str]:
    """Exit code and words of a command, run in a copy of this process: it has imported all that takes seconds."""
    receive, send = os.pipe()
    process = os.fork()
    if process == 0:
        code = 70
        try:
            os.close(receive)
            for stream in (1, 2):
                os.dup2(send, stream)
            os.chdir(folder)
            sys.argv = ["src.cli", *words]
            child()
            cli.main()
        except SystemExit as stop:
            code = int(stop.code or 0)
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    os.close(send)
    with os.fdopen(receive, encoding="utf-8", errors="replace") as file:
        said = file.read()
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]), said


def content(folder: Path, *places: str) -> Content:
    """Every file below the places; what a thing cost is no result."""
    paths = [path for place in places for path in (folder / place).rglob("*") if path.is_file()]
    kept = [path for path in paths if path.name != ".gitignore" and path.parent.name != "cost"]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in kept}


@dataclass
class Pipeline:
    """A tiny pipeline that ran undisturbed, its files, and the partial work of stages that were stopped midway."""

    folder: Path
    good: Content = field(default_factory=dict)
    partial: dict[str, Content] = field(default_factory=dict)

    def make(self) -> None:
        """Everything, once."""
        folder = self.folder
        for name in ("dvc.yaml", ".dvcignore", ".gitignore"):
            shutil.copy(ROOT / name, folder)
        shutil.copytree(ROOT / "src", folder / "src", ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copytree(ROOT / "data/experts/None", folder / "data/experts/None")
        yaml = YAML(typ="safe")
        raw = tiny(yaml.load((ROOT / "params.yaml").read_text(encoding="utf-8")))
        raw["runtime"] |= {"device": "cpu", "threads": 1, "workers": 1, "checkpoint_seconds": 0}
        raw["prepare"]["other"] = raw["prepare"][DATASET]
        yaml.dump(raw, folder / "params.yaml")
        for stage in ("resolve", *COMMANDS):
            code, said = run(folder, (stage,))
            assert code == 0, said
        shutil.rmtree(folder / ".cache/checkpoints")
        for words in ("git init -q", "dvc init -q", "dvc commit -q -f"):
            done = call(folder, *words.split())
            assert done.returncode == 0, done.stderr
        self.good = content(folder, "data")
        for stage in INTERRUPTED:
            self.partial[stage] = self._stopped(stage)
            self.restore()

    def _stopped(self, stage: str) -> Content:
        """The checkpoints of a stage that was stopped after two thirds of its steps."""
        self.forget(stage)
        _, said = run(self.folder, COMMANDS[stage], lambda: _count_steps(None))
        steps = int(said.split("steps: ")[-1])
        self.forget(stage)
        shutil.rmtree(self.folder / ".cache/checkpoints", ignore_errors=True)
        run(self.folder, COMMANDS[stage], lambda: _count_steps(2 * steps // 3))
        found = content(self.folder, f".cache/checkpoints/{stage}")
        assert found, stage
        return found

    def forget(self, stage: str) -> None:
        """Delete what the stage has made, as DVC does before it runs one."""
        shutil.rmtree(self.folder / FOLDERS[stage], ignore_errors=True)
        if stage == "evaluate":
            (self.folder / f"data/metrics/{RUN}.json").unlink(missing_ok=True)

    def restore(self) -> None:
        """Everything as it was, without partial work."""
        shutil.rmtree(self.folder / ".cache/checkpoints", ignore_errors=True)
        now = content(self.folder, "data")
        for name in now.keys() - self.good.keys():
            (self.folder / name).unlink()
        for name, data in self.good.items():
            if now.get(name) != data:
                self.put(name, data)

    def put(self, name: str, data: bytes) -> None:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)

    def changed(self, spare: str = "") -> list[str]:
        """Files that are there and are not what an undisturbed run made, half-written ones included."""
        now = content(self.folder, "data")
        return sorted(name for name, data in now.items() if data != self.good.get(name) and name != spare)

    def equal(self) -> bool:
        return content(self.folder, "data") == self.good


def _count_steps(limit: int | None) -> None:
    """Say how often the command checks whether to stop; or stop it there."""
    steps = 0

    def check() -> None:
        nonlocal steps
        steps += 1
        if limit is not None and steps > limit:
            raise InterruptedWorkError("Stopped")

    stopping.check = check
    if limit is None:
        end, sys.exit = sys.exit, lambda code=0: (print(f"steps: {steps}"), end(code))  # type: ignore[assignment]


# -- damage to what is read


def flip(data: bytes, draws: random.Random, others: list[bytes]) -> bytes:
    place = draws.randrange(8 * len(data))
    damaged = bytearray(data)
    damaged[place // 8] ^= 1 << place % 8
    return bytes(damaged)


def cut(data: bytes, draws: random.Random, others: list[bytes]) -> bytes:
    return data[: draws.randrange(1, len(data))]


def empty(data: bytes, draws: random.Random, others: list[bytes]) -> bytes:
    return b""


def vanish(data: bytes, draws: random.Random, others: list[bytes]) -> None:
    return None


def swap(data: bytes, draws: random.Random, others: list[bytes]) -> bytes:
    return draws.choice(others)


DAMAGES = {"bit flip": flip, "truncation": cut, "emptied": empty, "vanished": vanish, "another one": swap}


def damage(pipeline: Pipeline, name: str, fault: str, among: Content, draws: random.Random) -> None:
    """Damage a file; another one takes its place from those of its form."""
    different = {other: data for other, data in among.items() if data != among[name]}
    alike = [data for other, data in different.items() if Path(other).suffix == Path(name).suffix]
    data = DAMAGES[fault](among[name], draws, alike or [*different.values()])
    if data is None:
        (pipeline.folder / name).unlink()
    else:
        pipeline.put(name, data)


def read_damaged(pipeline: Pipeline, kind: str, fault: str, draws: random.Random) -> tuple[str, str]:
    """Damage an artifact, and run a stage that reads it."""
    name = draws.choice(sorted(READERS[kind]))
    readers = READERS[kind][name]
    stage = draws.choice(readers or ("report",))
    damage(pipeline, name, fault, pipeline.good, draws)
    code, said = run(pipeline.folder, COMMANDS[stage])
    about = f"{name} read by {stage}, exit code {code}: {said}"
    outcome = judged(code, said, pipeline.equal())
    if not readers and outcome != DETECTED and "Traceback" not in said:
        status = call(pipeline.folder, "dvc", "status").stdout
        outcome = DETECTED if name in status else outcome
        about += status
    elif outcome == DETECTED:
        if pipeline.changed(spare=name):
            return MISSED, f"{about}; changed: {pipeline.changed(spare=name)}"
        remedy = re.search(r"^Error: .*`python -m src\.cli ([^`]*)`", said, re.MULTILINE)  # not a warning's
        if remedy is None:
            return MISSED, f"{about}; no remedy"
        code, said = run(pipeline.folder, tuple(remedy[1].split()))
        if code or not pipeline.equal():
            return MISSED, f"{about}; the remedy ends with {code}, changed: {pipeline.changed()}: {said}"
    return outcome, about


def continue_damaged(pipeline: Pipeline, stage: str, fault: str, draws: random.Random) -> tuple[str, str]:
    """Damage partial work, and go on with it."""
    pipeline.forget(stage)
    every = {name: data for found in pipeline.partial.values() for name, data in found.items()}
    for name, data in pipeline.partial[stage].items():
        pipeline.put(name, data)
    name = draws.choice(sorted(pipeline.partial[stage]))
    damage(pipeline, name, fault, every, draws)
    code, said = run(pipeline.folder, COMMANDS[stage])
    return judged(code, said, pipeline.equal()), f"{name}, exit code {code}: {said}"


def judged(code: int, said: str, equal: bool) -> str:
    if "Traceback" in said:
        return MISSED
    if code:
        return DETECTED if "Error: " in said else MISSED
    return SURVIVED if equal else MISSED


# -- faults of writing


@dataclass(frozen=True)
class Disk:
    """A way to make writing fail. Its skipped reason is empty where this machine and user allow it."""

    skipped: str
    fail: Callable[[Pipeline, str, random.Random], tuple[int, str]]  # runs the stage with the fault
    mend: Callable[[Pipeline, str], None] = lambda pipeline, stage: None


def write_failing(pipeline: Pipeline, stage: str, disk: Disk, draws: random.Random) -> tuple[str, str]:
    """Run a stage while writing fails, and then again without the fault."""
    pipeline.forget(stage)
    lock = (pipeline.folder / "dvc.lock").read_bytes()
    try:
        code, said = disk.fail(pipeline, stage, draws)
        outcome, wrong = judged(code, said, pipeline.equal()), pipeline.changed()
    finally:
        disk.mend(pipeline, stage)
    about = f"{stage}, exit code {code}: {said}"
    if wrong or lock != (pipeline.folder / "dvc.lock").read_bytes():
        return MISSED, f"{about}; wrong files: {wrong}"
    code, said = run(pipeline.folder, COMMANDS[stage])
    if code or not pipeline.equal():
        return MISSED, f"{about}; then without the fault exit code {code}, changed: {pipeline.changed()}: {said}"
    return outcome, about


def biggest(pipeline: Pipeline, stage: str) -> int:
    return max(len(data) for name, data in pipeline.good.items() if name.startswith(FOLDERS[stage]))


def full_at_a_byte(pipeline: Pipeline, stage: str, draws: random.Random) -> tuple[int, str]:
    """No file may grow beyond a random byte."""
    size = draws.randrange(biggest(pipeline, stage))
    return run(pipeline.folder, COMMANDS[stage], lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size)))


def full_through_dvc(pipeline: Pipeline, stage: str, draws: random.Random) -> tuple[int, str]:
    """The same for the stage that `dvc repro` starts; DVC itself may write."""
    size = draws.randrange(biggest(pipeline, stage))
    with tempfile.TemporaryDirectory() as place:
        code = f"import os, resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, ({size}, {size}))"
        wrapper = Path(place, "python")
        start = f"{code}; os.execv({sys.executable!r}, [{sys.executable!r}, *sys.argv[1:]])"
        wrapper.write_text(f'#!/bin/sh\nexec {sys.executable} -c "{start}" "$@"\n')
        wrapper.chmod(0o755)
        target = f"{stage}@{TARGETS[stage]}" if stage in TARGETS else stage
        command = f'PATH="{place}:$PATH" dvc repro -f -s {target}'
        done = call(pipeline.folder, "sh", "-c", command)
    said = done.stdout + done.stderr
    return done.returncode, said.replace("ERROR: ", "") if "Error: " in said else said


def full_tmpfs(pipeline: Pipeline, stage: str, draws: random.Random) -> tuple[int, str]:
    """The stage's folder is a file system of its own, of a random number of pages."""
    pages = draws.randrange(1, max(2, sum(len(d) for n, d in pipeline.good.items() if n.startswith(FOLDERS[stage])) // 4096))
    _mount(pipeline, stage, f"size={4096 * pages}")
    return run(pipeline.folder, COMMANDS[stage])


def read_only_tmpfs(pipeline: Pipeline, stage: str, draws: random.Random) -> tuple[int, str]:
    """Also for root."""
    _mount(pipeline, stage, "ro")
    return run(pipeline.folder, COMMANDS[stage])


def _mount(pipeline: Pipeline, stage: str, options: str) -> None:
    place = pipeline.folder / FOLDERS[stage]
    place.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", place], check=True, capture_output=True)


def _unmount(pipeline: Pipeline, stage: str) -> None:
    """What was written there is gone with it, as DVC deletes a failed stage's outputs before it runs again."""
    subprocess.run(["umount", pipeline.folder / FOLDERS[stage]], check=False, capture_output=True)


def read_only_folder(pipeline: Pipeline, stage: str, draws: random.Random) -> tuple[int, str]:
    place = pipeline.folder / FOLDERS[stage]
    place.mkdir(parents=True)
    place.chmod(0o555)
    return run(pipeline.folder, COMMANDS[stage])


def _permit(pipeline: Pipeline, stage: str) -> None:
    (pipeline.folder / FOLDERS[stage]).chmod(0o755)


def refusal(pipeline: Pipeline, stage: str, draws: random.Random) -> tuple[int, str]:
    """One opening, writing, syncing or renaming of a file in data/ or .cache/ is refused, whichever it is."""
    _, said = run(pipeline.folder, COMMANDS[stage], lambda: _refuse(None, 0))
    operations = int(said.split("operations: ")[-1])
    pipeline.forget(stage)
    shutil.rmtree(pipeline.folder / ".cache/checkpoints", ignore_errors=True)
    which, number = draws.randrange(operations), draws.choice([errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.EROFS])
    return run(pipeline.folder, COMMANDS[stage], lambda: _refuse(which, number))


def _refuse(which: int | None, number: int) -> None:
    """Let the operation of this index fail; or say how many there are."""
    done, top = 0, Path.cwd()

    def operation(path: str | os.PathLike[str]) -> None:
        nonlocal done
        if any((top / path).is_relative_to(top / place) for place in ("data", ".cache")):
            done += 1
            if done - 1 == which:
                raise OSError(number, os.strerror(number), str(path))

    def hear(event: str, arguments: Any) -> None:
        writes = event == "open" and isinstance(arguments[0], str) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        if writes or event in ("os.rename", "os.mkdir", "os.remove", "os.chmod"):
            operation(arguments[0])

    def half_written(path: Path, data: bytes) -> None:
        try:
            operation(path)
        except OSError:
            path.write_bytes(data[: len(data) // 2])
            raise

    def save_file(tensors: Any, path: Path, metadata: Any) -> None:
        save(tensors, path, metadata)
        try:
            half_written(path, path.read_bytes())
        except OSError as error:
            raise safetensors.SafetensorError(str(error)) from None

    def fill(path: Path, text: str) -> None:
        write(path, text)
        half_written(path, path.read_bytes())

    def sync(handle: int) -> None:
        operation(str(Path(f"/proc/self/fd/{handle}").readlink()))
        fsync(handle)

    save, write, fsync, end = safetensors.torch.save_file, files._fill, os.fsync, sys.exit
    safetensors.torch.save_file, files._fill, os.fsync = save_file, fill, sync
    sys.addaudithook(hear)
    if which is None:
        sys.exit = lambda code=0: (print(f"operations: {done}"), end(code))  # type: ignore[assignment]


def _mounts() -> str:
    """Why tmpfs can't be mounted; empty where it can."""
    with tempfile.TemporaryDirectory() as place:
        try:
            subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4096", "tmpfs", place], check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError):
            return "mounting is not permitted"
        subprocess.run(["umount", place], check=True)
    return ""


def disks() -> dict[str, Disk]:
    """The ways of this machine."""
    mounts = _mounts()
    root = "root may write there" if os.geteuid() == 0 else ""
    return {
        "full at a byte": Disk("", full_at_a_byte),
        "full, through dvc": Disk("", full_through_dvc),
        "an operation refused": Disk("", refusal),
        "full tmpfs": Disk(mounts, full_tmpfs, _unmount),
        "read-only tmpfs": Disk(mounts, read_only_tmpfs, _unmount),
        "read-only folder": Disk(root, read_only_folder, _permit),
    }


# -- rounds

Case = tuple[str, str, Callable[[Pipeline, random.Random], tuple[str, str]]]  # kind, fault, the round


def cases(ways: dict[str, Disk]) -> list[Case]:
    """Every kind of artifact with every fault that this machine allows."""

    def case(of: Callable[..., tuple[str, str]], kind: str, fault: str, *what: Any) -> Case:
        return kind, fault, lambda pipeline, draws: of(pipeline, *what, draws)

    found = [case(read_damaged, kind, fault, kind, fault) for kind in READERS for fault in DAMAGES]
    found += [
        case(continue_damaged, f"checkpoint of {stage}", fault, stage, fault) for stage in INTERRUPTED for fault in DAMAGES
    ]
    allowed = {name: disk for name, disk in ways.items() if not disk.skipped}
    found += [
        case(write_failing, f"written by {stage}", name, stage, disk) for stage in COMMANDS for name, disk in allowed.items()
    ]
    return found


def play(pipeline: Pipeline, rounds: int, first: int = 0) -> tuple[Counter[tuple[str, str, str]], list[str]]:
    """So many rounds: what became of each kind and fault, and a line of each that was missed."""
    every = cases(disks())
    counts: Counter[tuple[str, str, str]] = Counter()
    missed = []
    for seed in range(first, first + rounds):
        order = random.Random(seed // len(every)).sample(every, len(every))  # all cases before one comes again
        kind, fault, one = order[seed % len(every)]
        outcome, about = one(pipeline, random.Random(seed))
        pipeline.restore()
        counts[kind, fault, outcome] += 1
        if outcome == MISSED:
            missed.append(f"seed {seed}, {kind}, {fault}: {about}")
    return counts, missed


def table(counts: Counter[tuple[str, str, str]]) -> Table:
    shown = Table("kind", "fault", "injected", DETECTED, SURVIVED, MISSED)
    for kind, fault in sorted({(kind, fault) for kind, fault, _ in counts}):
        found = [counts[kind, fault, outcome] for outcome in (DETECTED, SURVIVED, MISSED)]
        shown.add_row(kind, fault, *(str(number) for number in (sum(found), *found)))
    totals = [sum(n for (_, _, found), n in counts.items() if found == outcome) for outcome in (DETECTED, SURVIVED, MISSED)]
    shown.add_row("all", "", *(str(number) for number in (sum(totals), *totals)))
    return shown


def main() -> int:
    """Rounds, the table, and exit code 1 where a fault was missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0, help="of the first round; the next has the next number")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        pipeline = Pipeline(Path(folder))
        isolate()
        pipeline.make()
        counts, missed = play(pipeline, asked.rounds, asked.seed)
    Console().print(table(counts))
    for name, disk in disks().items():
        if disk.skipped:
            print(f"skipped: {name}: {disk.skipped}")
    print("\n".join(missed), file=sys.stderr)
    return int(bool(missed))


def isolate() -> None:
    """No tracking: it may fail in any way, and costs seconds; and nothing of a caller's DVC."""
    os.environ["MLFLOW_TRACKING_URI"] = "none://"
    os.environ.pop("DVC_ROOT", None)


if __name__ == "__main__":
    sys.exit(main())
