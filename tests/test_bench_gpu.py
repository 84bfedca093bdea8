"""`bench gpu`: what is measured and in which order, that it ends in time with what it has, and its table; tiny, on the CPU."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from src import cli
from src.bench import gpu, process, tables, worker
from src.bench.settings import ExpertsSetting, MatchingSetting, Setting
from src.ground.errors import UserError

SMALL: dict[str, Any] = {"size": 8, "channels": 1, "classes": 3, "width": 4, "depth": 1, "compile": "off", "workers": 1}
SIZES = {
    "matching": {**SMALL, "ipc": 1, "syn_steps": 2, "iterations": 1},
    "experts": {**SMALL, "images": 24, "batch_size": 8},
    "evaluate": {**SMALL, "ipc": 1, "epochs": 2, "students": 2},
}
GPU = {"device": "A GPU", "torch": "2", "cuda": "13"}


class Clock:
    """Every measurement takes as many seconds as it is told to, or its deadline."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, machine: dict[str, Any] = GPU, **seconds: float):
        self.now = 0.0
        self.machine, self.seconds = machine, seconds
        self.asked: list[tuple[str, str, float]] = []
        monkeypatch.setattr(process, "ask", self.ask)

    def __call__(self) -> float:
        return self.now

    def ask(self, task: str, side: str, setting: Setting, cache: Path, seconds: float) -> dict[str, Any]:
        if task == "machine":
            return self.machine
        self.asked.append((task, side, seconds))
        wanted = self.seconds.get(side, 1.0)
        self.now += min(wanted, seconds)
        if wanted > seconds:
            raise UserError(f"the worker '{side} {task}' was not done after {seconds:.0f} s: make the setting smaller")
        if side == "plain":
            raise UserError("the worker 'plain matching' failed: memory ran out: make the setting smaller")
        return {"seconds": 2.0, "seconds_per_iteration": 2.0, "images_per_second": 1e6, "peak_memory_mib": 1024.0, "experts": 4}


def shown(found: dict[str, Any]) -> str:
    console = Console(width=200, record=True, file=sys.stderr)
    console.print(tables.gpu(found))
    return console.export_text()


def test_on_the_cpu_with_real_workers_logic(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Each measurement once, in this process."""

    def ask(task: str, side: str, setting: Setting, cache: Path, seconds: float) -> dict[str, Any]:
        worker.main(json.dumps({"task": task, "side": side, "setting": setting.model_dump()}))
        return process.answer(f"{side} {task}", 0, capsys.readouterr().out, "")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(process, "ask", ask)
    kept: list[int] = []
    asked = gpu.measurements("cpu", **SIZES)
    found = gpu.run(10, asked, lambda whole: kept.append(len(json.loads(json.dumps(whole))["measurements"])))
    assert kept == [*range(1, len(asked) + 1)]
    assert found["machine"]["device"] == "cpu"
    assert all("figures" in one for one in found["measurements"])
    text = shown(found)
    assert "experts a minute, 2 at once" in text
    assert "TESLA" in text
    assert found["measurements"][0]["figures"]["backend"] == "eager"


def test_what_is_compared_with_publications_comes_first() -> None:
    first, second, *_ = gpu.measurements()
    for one in (first, second):
        assert isinstance(one.setting, MatchingSetting)
        assert (one.setting.classes, one.setting.ipc, one.setting.syn_steps, one.setting.width) == (100, 10, 20, 128)
    assert (first.side, second.side) == ("engine", "plain")
    assert {one.setting.device for one in gpu.measurements()} == {"cuda"}
    assert any(isinstance(one.setting, ExpertsSetting) and one.setting.gradient_penalty for one in gpu.measurements())


def test_memory_that_runs_out_is_a_result(monkeypatch: pytest.MonkeyPatch) -> None:
    found = gpu.run(10, gpu.measurements(), lambda _: None, Clock(monkeypatch))
    failed = {one["side"]: one.get("failed") for one in found["measurements"]}
    assert failed == {"engine": None, "plain": "out of memory"}
    assert "out of memory" in shown(found)


@pytest.mark.parametrize("minutes", [1, 3, 10])
def test_it_ends_in_time_with_what_it_has(minutes: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """The plain way hangs: it is ended each time, and the engine's measurements that come after it are still made."""
    clock = Clock(monkeypatch, plain=1e9, engine=5.0)
    found = gpu.run(minutes, gpu.measurements(), lambda _: None, clock)
    assert clock.now <= 60 * minutes
    results = [gpu.summary(one) for one in found["measurements"]]
    assert results[0] == "2 s"
    assert results[1] == f"not done in {30 * minutes - 2.5:.0f} s"
    assert "24 experts a minute, 4 at once" in results[2] or results[2] == "no time left"
    assert results[-1] == "no time left" or minutes == 10
    assert len(results) == len(gpu.measurements())


def test_a_worker_is_killed_at_its_deadline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    with pytest.raises(UserError, match=r"'plain matching' was not done after 0 s"):
        process.ask("matching", "plain", MatchingSetting(**SIZES["matching"], device="cpu"), tmp_path, 0.2)


def test_without_a_gpu_it_says_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    Clock(monkeypatch, {"device": "cpu", "torch": "2"})
    monkeypatch.setattr(sys, "argv", ["src.cli", "bench", "gpu"])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 1
    assert (
        capsys.readouterr().err
        == "Error: bench gpu measures a GPU, but torch finds none here: run it on a machine that has one\n"
    )


def test_the_command_keeps_what_it_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Clock(monkeypatch)
    file = tmp_path / "found.json"
    monkeypatch.setattr(sys, "argv", ["src.cli", "bench", "gpu", "--minutes", "2", "--json", str(file)])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert not stop.value.code
    assert len(json.loads(file.read_text(encoding="utf-8"))["measurements"]) == len(gpu.measurements())
    assert "A GPU" in capsys.readouterr().out
