"""Two hosts, each a network of its own on this machine: the scheduler is on one, a worker on each, the command on the other.

Without root, iproute2 or the extra [cluster] these are skipped.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import TrialState

from src.store import files
from tests import studying
from tests.clusters import Machines, until
from tests.stored import client_of
from tests.studying import RUN
from tests.test_ablate import figures
from tests.test_tune import all_done, journal

pytest.importorskip("distributed", reason="the extra [cluster] is not installed")

CUT_SECONDS = 30.0
PATIENCE_SECONDS = 10.0  # with a link that is cut for good
ADDRESSES = ("10.213.71.1", "10.213.71.2")
DEVICE = "ast0"
TRIALS = 4


@dataclass
class Hosts:
    """Their namespaces, the first with the scheduler."""

    names: tuple[str, str]
    machines: Machines

    def start(self, folder: Path, words: str) -> subprocess.Popen[str]:
        """A command of this repository on the second host."""
        command = [*within(self.names[1]), sys.executable, "-m", "src.cli", *words.split()]
        return subprocess.Popen(command, cwd=folder, env=studying.environment(folder), stderr=subprocess.PIPE, text=True)

    def link(self, state: str) -> None:
        ip("-n", self.names[1], "link", "set", DEVICE, state)


def within(name: str) -> list[str]:
    return ["ip", "netns", "exec", name]


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


@pytest.fixture
def hosts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hosts]:
    """Both, with a link between them."""
    if os.getuid() != 0 or shutil.which("ip") is None:
        pytest.skip("asks for root and iproute2")
    monkeypatch.setenv("DASK_DISTRIBUTED__COMM__TIMEOUTS__TCP", "300s")  # as docs/cluster.md has it
    names = (f"ast-{os.getpid()}-1", f"ast-{os.getpid()}-2")
    machines = Machines(tmp_path)
    try:
        for name in names:
            ip("netns", "add", name)
        ip("link", "add", DEVICE, "netns", names[0], "type", "veth", "peer", "name", DEVICE, "netns", names[1])
        for name, address in zip(names, ADDRESSES, strict=True):
            ip("-n", name, "address", "add", f"{address}/24", "dev", DEVICE)
            for device in ("lo", DEVICE):
                ip("-n", name, "link", "set", device, "up")
        machines.begin(ADDRESSES[0], within(names[0]))
        for name in names:
            machines.add(within=within(name))
        yield Hosts(names, machines)
    finally:
        machines.end()
        for name in names:
            subprocess.run(["ip", "netns", "delete", name], check=False, capture_output=True)


def raw_params(**runtime: Any) -> dict[str, Any]:
    raw = studying.raw_params(students=2, rungs=1)
    raw["runtime"] |= {"checkpoint_seconds": 0.1, **runtime}
    raw["experts"]["digits-smooth"] |= {"count": 4}
    raw["runs"][RUN]["distill"] |= {"iterations": 2}
    raw["evaluate"]["mtt"] |= {"epochs": 5}
    return raw


def experts_of(folder: Path) -> Any:
    return files.digest(folder / "data/experts/digits-smooth")


def ablation_of(folder: Path) -> Any:
    return {label: (one["seeds"], one["problem"]) for label, one in figures(folder).items()}


def trials_of(folder: Path) -> Any:
    """Of which workers that end in another order draw others, so that their number and states alone are the same."""
    opened = journal(folder)
    all_done(opened, TRIALS)
    client = client_of(folder)
    rows = client.search_runs([client.get_experiment_by_name("digits-studies").experiment_id])  # type: ignore[union-attr]
    assert not [row for row in rows if row.info.status == "RUNNING"]
    return [trial.state for trial in opened.trials]


@dataclass(frozen=True)
class Work:
    """A command, the files of what it has finished, and what it leaves."""

    words: str
    finished: str
    left: Callable[[Path], Any]


WORK = {
    "experts": Work("experts --experts digits-smooth", "data/experts/digits-smooth/trajectories/*.safetensors", experts_of),
    "ablation": Work(f"ablate --run {RUN} --seeds 2", "data/ablate/*/results/*.json", ablation_of),
    "study": Work(f"tune --run {RUN} --trials {TRIALS}", "data/tune/*/data/distill/*/*.safetensors", trials_of),
}


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Any]:
    """What a command leaves that knows no cluster; made once."""
    known: dict[str, Any] = {"study": [TrialState.COMPLETE] * TRIALS}

    def of(name: str) -> Any:
        if name not in known:
            folder = studying.folder_of(tmp_path_factory.mktemp(name), raw_params())
            done = studying.call(folder, WORK[name].words)
            assert done.returncode == 0, done.stderr
            known[name] = WORK[name].left(folder)
        return known[name]

    return of


def begun(hosts: Hosts, work: Work, folder: Path, patience: float) -> subprocess.Popen[str]:
    """The command, when it has finished something."""
    raw = raw_params(executor="dask", address=hosts.machines.address, patience_seconds=patience)
    folder.mkdir()
    studying.folder_of(folder, raw)
    started = hosts.start(folder, work.words)
    until(lambda: any(folder.glob(work.finished)) or started.poll() is not None, 240)
    assert started.poll() is None
    return started


@pytest.mark.slow
@pytest.mark.parametrize("name", WORK)
def test_a_link_that_is_cut_for_a_while_is_waited_for(
    name: str, hosts: Hosts, alone: Callable[[str], Any], tmp_path: Path
) -> None:
    started = begun(hosts, WORK[name], tmp_path / "here", 600)
    hosts.link("down")
    time.sleep(CUT_SECONDS)
    assert started.poll() is None
    hosts.link("up")
    assert started.wait(600) == 0, started.stderr.read()  # type: ignore[union-attr]
    assert WORK[name].left(tmp_path / "here") == alone(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", WORK)
def test_a_link_that_is_cut_for_good_ends_in_a_sentence_with_nothing_lost(
    name: str, hosts: Hosts, alone: Callable[[str], Any], tmp_path: Path
) -> None:
    folder = tmp_path / "here"
    started = begun(hosts, WORK[name], folder, PATIENCE_SECONDS)
    hosts.link("down")
    said = started.communicate(timeout=120)[1]
    assert started.returncode == 1
    assert "Traceback" not in said
    assert f"does not answer, for {PATIENCE_SECONDS:.0f} s: what is finished is kept" in said.splitlines()[-1]
    kept = {path: path.stat().st_mtime_ns for path in folder.glob(WORK[name].finished)}
    hosts.link("up")
    again = hosts.start(folder, WORK[name].words)
    assert again.wait(600) == 0, again.stderr.read()  # type: ignore[union-attr]
    assert kept and all(path.stat().st_mtime_ns == at for path, at in kept.items())
    assert WORK[name].left(folder) == alone(name)
