"""The benchmark's figures: both sides solve the same problem, and ratios, errors and shares are what they are called."""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from src import cli
from src.bench import comparison, engine, limits, plain, process, tables, worker
from src.bench.problem import Problem, matching_problem
from src.bench.settings import EvaluateSetting, ExpertsSetting, MatchingSetting, Setting
from src.ground.errors import UserError
from src.maths.derivatives import PASSES, Backend, Derivatives
from tests.reference import needs_kernels

CPU = torch.device("cpu")
TINY: dict[str, Any] = {
    "size": 8,
    "channels": 1,
    "classes": 4,
    "width": 4,
    "depth": 2,
    "compile": "off",
    "device": "cpu",
    "workers": 1,
}
WORDS = "--size 8 --channels 1 --classes 4 --width 4 --depth 2 --ipc 1 --syn-steps 3 --compile off --rounds 1"


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Workers run here, which saves the seconds that a process takes to import torch."""

    def ask(task: str, side: str, setting: Setting, cache: Path) -> dict[str, Any]:
        worker.main(json.dumps({"task": task, "side": side, "setting": setting.model_dump()}))
        return process.answer(f"{side} {task}", 0, capsys.readouterr().out, "")

    monkeypatch.setattr(process, "ask", ask)
    monkeypatch.setattr(limits, "PEAK_SECONDS", 0.01)


def problem(**setting: Any) -> Problem:
    return matching_problem(MatchingSetting(**{**TINY, "ipc": 2, "syn_steps": 5, **setting}), CPU)


def test_both_sides_have_the_same_gradient() -> None:
    given = problem().double()
    ours = engine.image_gradient(Derivatives(given.network), given)
    theirs = plain.image_gradient(given)
    assert theirs.norm() > 0
    assert (ours - theirs).norm() <= 1e-10 * theirs.norm()


@pytest.mark.usefixtures("in_process")
def test_matching_figures() -> None:
    found = comparison.matching(MatchingSetting(**TINY, ipc=1, syn_steps=4, iterations=2), rounds=3)
    rounds = {side: found[side]["seconds_per_iteration_of_rounds"] for side in ("plain", "engine")}
    assert found["ratio"] == statistics.median(p / e for p, e in zip(rounds["plain"], rounds["engine"], strict=True))
    for side, seconds in rounds.items():
        assert found[side]["seconds_per_iteration"] == statistics.median(seconds)
        assert found["share_of_peak"][side] == pytest.approx(found["gflops"][side] / found["peak_gflops"]["float32"])
    assert found["memory_ratio"] == found["plain"]["peak_memory_mib"] / found["engine"]["peak_memory_mib"]
    work = {side: found["gflops"][side] * found[side]["seconds_per_iteration"] for side in rounds}
    assert work["engine"] / work["plain"] == pytest.approx(12 / 9)
    assert (found["engine"]["backend"], found["engine"]["compile_seconds"]) == ("eager", 0.0)
    assert 0 < found["gradient_error"] < 1e-4
    assert 0 < found["plain_gradient_error"] < 1e-4
    assert found["gradient_error_steps"] == 3
    assert found["machine"]["torch"] == torch.__version__
    assert len(found["engine"]["matching_losses"]) == 3
    assert found["engine"]["matching_losses"] == pytest.approx(found["plain"]["matching_losses"], rel=1e-4)
    assert tables.matching(found).row_count == 8


@pytest.mark.usefixtures("in_process")
def test_experts_figures() -> None:
    found = comparison.experts(ExpertsSetting(**TINY, images=24, batch_size=8), rounds=1)
    for name in ("without_penalty", "with_penalty"):
        assert found[name]["ratio"] == pytest.approx(found[name]["engine"] / found[name]["plain"])
    assert tables.experts(found).row_count == 3


@pytest.mark.usefixtures("in_process")
def test_evaluate_figures() -> None:
    found = comparison.evaluate(EvaluateSetting(**TINY, ipc=2, epochs=2), rounds=1)
    assert found["ratio"] == found["plain"]["seconds"] / found["engine"]["seconds"]
    assert tables.evaluate(found).row_count == 2


class Work(TorchDispatchMode):
    """Counts floating-point operations of convolutions on the real operators, those of a backward pass included."""

    total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func._overloadpacket in flop_registry and "convolution" in str(func):
            self.total += flop_registry[func._overloadpacket](*args, **(kwargs or {}), out_val=out)
        return out


WITH_KERNELS = [pytest.param(side, passes, marks=needs_kernels) for side, passes in (("kernels", 11), ("kept", 9))]


@pytest.mark.parametrize(("side", "passes"), [("plain", plain.PLAIN_PASSES), ("eager", PASSES), *WITH_KERNELS])
def test_work_of_a_step_in_forward_passes(side: str, passes: int) -> None:
    """A little below: the parameters' gradient needs none for the first layer's input, nor the plain way one for theta_0; and
    what kernels take for the images is no convolution of torch's."""
    given = problem(size=32, channels=3, depth=3, width=32, classes=2, ipc=1, syn_steps=6)
    forward = given.network.forward_flops(given.images)
    with Work() as work:
        if side == "plain":
            plain.image_gradient(given)
        else:
            backend: Backend = "eager" if side == "eager" else "kernels"
            found = Derivatives(given.network, backend=backend, memory_mib=1024 if side == "kept" else 0)
            engine.image_gradient(found, given)
    assert 0.87 * passes <= work.total / forward / 6 <= passes


def bench(words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["src.cli", "bench", *words.split()])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    if stop.value.code:
        raise SystemError(stop.value.code)


def test_a_worker_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.chdir(tmp_path)  # workers find the package from anywhere
    found = process.ask("matching", "plain", MatchingSetting(**TINY, ipc=1, syn_steps=2), tmp_path)
    assert found["seconds_per_iteration"] > 0
    assert found["peak_memory_mib"] > 50


@pytest.mark.usefixtures("in_process")
@pytest.mark.parametrize(("side", "other"), [("plain", "engine"), ("engine", "plain")])
def test_one_side_alone(
    side: str, other: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "new" / "found.json"
    bench(f"{WORDS} --only {side} --json {file}", monkeypatch)
    found = json.loads(file.read_text(encoding="utf-8"))
    assert found[side]["seconds_per_iteration"] > 0
    assert ("gradient_error" in found) == (side == "engine")
    assert not {other, "ratio", "memory_ratio"} & set(found)
    assert "peak memory, MiB" in capsys.readouterr().out


BAD = [
    ("--syn-steps 0", "Input should be greater than or equal to 1"),
    ("--precision half", "'half' is not one of 'float32', 'tf32', 'bfloat16'"),
    ("--only nobody", "'nobody' is not one of 'engine', 'plain'"),
    ("--ipc 1 experts", "--ipc stands before 'experts': options go behind it"),
    ("experts --images 0", "Input should be greater than or equal to 1"),
    ("evaluate --epochs many", "valid integer"),
    (f"{WORDS} --depth 7", "network depth 7 halves a side of 8 pixels below 1: use depth 3 or less"),
]


@pytest.mark.usefixtures("in_process")
@pytest.mark.parametrize(("words", "sentence"), BAD)
def test_bad_options(words: str, sentence: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemError):
        bench(words, monkeypatch)
    error = capsys.readouterr().err
    assert sentence in error
    assert "Traceback" not in error


def test_a_worker_without_memory_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    setting = MatchingSetting(**{**TINY, "size": 1_000_000, "ipc": 1000})  # beyond what an address can name
    worker.main(json.dumps({"task": "matching", "side": "plain", "setting": setting.model_dump()}))
    assert "memory ran out: make the setting smaller" in json.loads(capsys.readouterr().out)["error"]


FAILED = [
    ((-9, "", ""), "killed by SIGKILL, most likely because memory ran out: make the setting smaller"),
    ((-11, "", ""), "killed by SIGSEGV: make"),
    ((1, "", "Traceback\nodd.BadError: odd\n\nSet VERBOSE=1"), "failed with exit code 1: odd.BadError: odd"),
    ((0, '{"error": "too deep"}\n', ""), "failed: too deep"),
    ((1, "", ""), "failed with exit code 1: it said nothing"),
]


@pytest.mark.parametrize(("ended", "sentence"), FAILED)
def test_a_failed_worker_is_one_sentence(ended: tuple[int, str, str], sentence: str) -> None:
    with pytest.raises(UserError, match="the worker 'plain matching'") as error:
        process.answer("plain matching", *ended)
    assert sentence in str(error.value)
