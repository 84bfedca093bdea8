"""Experts and students side by side: the bytes do not depend on processes, errors and progress come back from them."""

from __future__ import annotations

import functools
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from joblib.externals.loky import get_reusable_executor  # type: ignore[import-untyped]

from src.ground import host
from src.ground.errors import DivergenceError, InterruptedWorkError, ParamsError, UserError
from src.loops import counted, expert_memory
from src.maths import protocol
from src.process import stopping, workers
from src.process.progress import Advance
from src.settings import params as reading
from src.settings import resolved
from src.settings.params import Params
from src.settings.runtime import Runtime
from src.stages import evaluate, experts, prepare, students
from src.stages.records import experts_record
from src.store import checkpoints, files
from src.store.values import Record, SyntheticSet
from tests.imports import ROOT
from tests.small_run import STORE

COUNT, EPOCHS = 3, 5
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder where the module's tests work, with the digits' splits."""
    folder, before = tmp_path_factory.mktemp("work"), Path.cwd()
    os.chdir(folder)
    yield folder
    os.chdir(before)


@pytest.fixture
def raw(valid_params: dict[str, Any]) -> dict[str, Any]:
    settings = {"count": COUNT, "epochs": EPOCHS, "batch_size": 256, "gradient_penalty": 2.0, "augmentation": ["crop", "scale"]}
    valid_params["experts"]["smooth"] |= settings
    valid_params["evaluate"]["mtt"] |= {"students": 3, "epochs": 5, "augmentation": ["crop", "color"]}
    return valid_params


@pytest.fixture
def params(prepared: Path, raw: dict[str, Any]) -> Params:
    found = reading.parse(raw)
    if not STORE.dataset_folder("digits").exists():
        prepare.run(STORE, resolved.data_set(found, "digits"))
    return found


def with_runtime(params: Params, **changes: Any) -> Params:
    return replace(params, runtime=params.runtime.model_copy(update=changes))


def test_what_was_spent_before_counts(params: Params) -> None:
    trained(params)
    statistics, record = STORE.load_statistics("digits"), experts_record(STORE, resolved.buffer(params, "smooth"))
    alone, side_by_side = (
        experts.train_all(STORE, resolved.buffer(with_runtime(params, workers=count), "smooth"), statistics, record, CPU)[
            1
        ].seconds
        for count in (1, 2)
    )
    assert alone == 2 * side_by_side > 0


def with_experts(params: Params, **changes: Any) -> Params:
    return replace(params, experts={"smooth": params.experts["smooth"].model_copy(update=changes)})


def trained(params: Params) -> tuple[list[str], list[dict[str, Any]]]:
    """Digests of the trajectories, and the curves' rows."""
    checkpoints.forget("experts", "smooth")  # finished experts would be kept
    statistics, record = STORE.load_statistics("digits"), experts_record(STORE, resolved.buffer(params, "smooth"))
    rows, elsewhere = experts.train_all(STORE, resolved.buffer(params, "smooth"), statistics, record, CPU)
    assert elsewhere.peak_memory_mib > 10
    assert elsewhere.seconds == 0
    return [files.digest(STORE.trajectory_file("smooth", index)) for index in range(COUNT)], rows


def test_bytes_do_not_depend_on_the_number_of_processes(params: Params) -> None:
    first, rows = trained(with_runtime(params, workers=1))
    assert [(row["expert"], row["epoch"]) for row in rows] == [(i, e) for i in range(COUNT) for e in range(1, EPOCHS + 1)]
    assert len(set(first)) == COUNT
    for count in (2, 4):
        assert trained(with_runtime(params, workers=count)) == (first, rows)


@pytest.fixture
def together(monkeypatch: pytest.MonkeyPatch) -> None:
    """Experts in groups, as on a GPU that holds two."""
    monkeypatch.setattr(experts, "_groups", lambda *_: [range(2), range(2, COUNT)])


def test_experts_side_by_side_are_those_alone(params: Params, request: pytest.FixtureRequest) -> None:
    """Within rounding, in their own files, with their own rows."""
    params = with_runtime(params, workers=1)
    _, rows = trained(params)
    alone = [STORE.read_snapshots("smooth", index, 0, EPOCHS + 1) for index in range(COUNT)]
    request.getfixturevalue("together")
    _, found = trained(params)
    for index, one in enumerate(alone):
        assert (STORE.read_snapshots("smooth", index, 0, EPOCHS + 1) - one).norm() <= 1e-4 * one.norm()
    assert [(row["expert"], row["epoch"]) for row in found] == [(row["expert"], row["epoch"]) for row in rows]
    assert [row["train_loss"] for row in found] == pytest.approx([row["train_loss"] for row in rows], rel=1e-3)


@pytest.mark.usefixtures("together")
def test_experts_side_by_side_go_on_where_they_were_stopped(params: Params, monkeypatch: pytest.MonkeyPatch) -> None:
    """To the same bytes; each has a checkpoint of its own, and one that is finished is kept."""
    params = with_runtime(params, workers=1, checkpoint_seconds=0)
    whole, rows = trained(params)
    checkpoints.forget("experts", "smooth")
    left = [9]

    def stop() -> None:
        left[0] -= 1
        if left[0] < 0:
            raise InterruptedWorkError

    statistics, record = STORE.load_statistics("digits"), experts_record(STORE, resolved.buffer(params, "smooth"))

    def again() -> list[dict[str, Any]]:
        return experts.train_all(STORE, resolved.buffer(params, "smooth"), statistics, record, CPU)[0]

    monkeypatch.setattr(stopping, "check", stop)
    with pytest.raises(InterruptedWorkError):
        again()
    monkeypatch.setattr(stopping, "check", lambda: None)
    assert len(list((checkpoints.folder() / "experts/smooth").iterdir())) == 2
    assert again() == rows
    assert [files.digest(STORE.trajectory_file("smooth", index)) for index in range(COUNT)] == whole
    STORE.trajectory_file("smooth", 1).unlink()  # this one is trained again, alone
    before = [STORE.trajectory_file("smooth", index).stat().st_mtime_ns for index in (0, 2)]
    assert len(again()) == len(rows)
    assert [STORE.trajectory_file("smooth", index).stat().st_mtime_ns for index in (0, 2)] == before
    assert STORE.trajectory_file("smooth", 1).exists()


@pytest.mark.usefixtures("together")
def test_divergence_side_by_side_is_a_sentence(params: Params) -> None:
    with pytest.raises(DivergenceError, match=r"smooth, experts 0 1: the expert diverged in epoch 1 .*lower the experts' lr"):
        trained(with_runtime(with_experts(params, lr=1e30), workers=1))


def test_as_many_are_side_by_side_as_memory_holds(params: Params, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is the GPU's memory that decides, not what others have taken of it; `workers` is a limit."""
    buffer, statistics = (
        resolved.buffer(with_experts(with_runtime(params, workers=None), count=100), "smooth"),
        STORE.load_statistics("digits"),
    )
    assert experts._groups(buffer, statistics, CPU) == [range(index, index + 1) for index in range(100)]
    task = counted.Task(buffer.spec, statistics.shape, False)
    train, val = (sum(statistics.counts[split].values()) for split in ("train", "val"))
    seven = expert_memory.experts(task, buffer.settings, train, val, 7)
    gpu = torch.device("cuda")

    def groups(share: float, buffer: resolved.Buffer = buffer) -> list[range]:
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (0, share * seven / counted.SHARE))
        return experts._groups(buffer, statistics, gpu)

    assert groups(1.001)[0] == range(7)
    assert groups(0.999)[0] == range(6)
    assert groups(1.001)[-1] == range(98, 100)
    assert groups(0.0)[0] == range(1)
    assert groups(100) == [range(100)]
    assert groups(1.001, replace(buffer, runtime=Runtime(workers=3)))[0] == range(3)


def test_stopped_experts_are_the_first_epochs_of_whole_ones(params: Params) -> None:
    params = with_experts(params, clipping_loss=True, clipping_epochs=3, lr_drop_factor=0.5, momentum=0.9)
    _, rows = trained(params)
    whole = STORE.read_snapshots("smooth", 0, 0, EPOCHS + 1)
    _, first_rows = trained(with_experts(params, stop_epoch=4))
    assert torch.equal(STORE.read_snapshots("smooth", 0, 0, EPOCHS + 1), whole[:5])
    assert first_rows == [row for row in rows if row["epoch"] <= 4]


@pytest.mark.parametrize("count", [1, 2])
def test_divergence_in_a_process_is_the_same_sentence(params: Params, count: int) -> None:
    diverging = with_runtime(with_experts(params, lr=1e30), workers=count)
    with pytest.raises(DivergenceError, match=r"epoch 1 .*lower the experts' lr"):
        trained(diverging)


def test_stop_epoch_lies_within_the_epochs_and_beyond_what_runs_need(raw: dict[str, Any]) -> None:
    smooth, method = raw["experts"]["smooth"], raw["distill"]["ast"]
    for stop, text in ((6, "experts.smooth: stop_epoch 6 lies beyond the 5 epochs"), (4, "raise experts.smooth.stop_epoch")):
        smooth["stop_epoch"] = stop  # start epochs up to 3, two epochs matched: five are needed
        with pytest.raises(ParamsError, match=text):
            reading.parse(raw)
    method["max_start_epoch"] = 3
    assert reading.parse(raw).experts["smooth"].last_epoch == 4


def test_epochs_that_no_run_needs_are_said(raw: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    raw["experts"]["smooth"] |= {"epochs": 20}
    experts.say_what_is_needed(resolved.buffer(reading.parse(raw), "smooth"))
    assert capsys.readouterr().err == "smooth: its runs need 5 of 20 epochs: stop_epoch: 5 would save 75 %\n"
    raw["experts"]["smooth"] |= {"stop_epoch": 5}
    experts.say_what_is_needed(resolved.buffer(reading.parse(raw), "smooth"))
    assert capsys.readouterr().err == ""


def predicted(params: Params) -> dict[str, list[list[int]]]:
    images = torch.randn(10, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    statistics = STORE.load_statistics("digits")
    synthetic = SyntheticSet(images, torch.arange(10), torch.tensor(0.01))
    STORE.save_synthetic("one", synthetic, Record("synthetic set", {}))
    found, *_ = evaluate.predict_all(
        STORE, resolved.run(params, "one"), ("D2", params.networks["D2"]), synthetic, statistics, CPU
    )
    checkpoints.forget("evaluate", "one@D2")
    return {split: classes.tolist() for split, classes in found.items()}


def test_students_do_not_depend_on_processes_or_on_each_other(params: Params, monkeypatch: pytest.MonkeyPatch) -> None:
    alone = predicted(with_runtime(params, workers=1))
    assert {split: len(classes) for split, classes in alone.items()} == {"val": 3, "test": 3}
    assert students.parts(3, 2) == 2
    assert alone == predicted(with_runtime(params, workers=2))  # which hand a student over
    assert alone == predicted(with_runtime(params, workers=4))
    fewer = replace(params, evaluate={"mtt": params.evaluate["mtt"].model_copy(update={"students": 2})})
    assert {split: classes[:2] for split, classes in alone.items()} == predicted(fewer)
    choose = protocol.choose
    monkeypatch.setattr(protocol, "choose", lambda *asked: replace(choose(*asked), together=True))  # as on a GPU
    together = predicted(params)
    same = torch.tensor(together["test"]) == torch.tensor(alone["test"])
    assert same.double().mean() > 0.99  # they round differently


def test_students_one_by_one_go_on_where_they_were_stopped(params: Params, monkeypatch: pytest.MonkeyPatch) -> None:
    params = with_runtime(params, workers=1, checkpoint_seconds=0)
    whole = predicted(params)
    for calls in (3, 4, 5, 6, 8):  # of derivatives and forward passes until the next stop
        left = [calls]

        def stop(left: list[int] = left) -> None:
            left[0] -= 1
            if left[0] < 0:
                raise InterruptedWorkError

        monkeypatch.setattr(stopping, "check", stop)
        for _ in range(2):
            with pytest.raises(InterruptedWorkError):
                predicted(params)
            left[0] = calls
        monkeypatch.setattr(stopping, "check", lambda: None)
        assert list((checkpoints.folder() / "evaluate/one@D2").iterdir())
        assert predicted(params) == whole


@pytest.mark.parametrize(
    ("groups", "processes", "expected"), [(5, 2, 2), (5, 1, 1), (4, 2, 1), (5, 5, 1), (6, 4, 2), (5, 4, 4)]
)
def test_parts_end_at_the_same_time(groups: int, processes: int, expected: int) -> None:
    assert students.parts(groups, processes) == expected
    assert groups * expected % processes == 0


def announced(piece: int, device: torch.device, advance: Advance, fail: int = -1) -> tuple[int, int]:
    if piece == fail:
        raise UserError(f"piece {piece} failed")
    for unit in range(3):
        advance(f"unit {unit}")
    return piece, torch.get_num_threads()


@pytest.mark.parametrize("count", [1, 2])
def test_progress_threads_and_errors_come_back(
    count: int, prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    torch.set_num_threads(2)
    found, _ = workers.each(announced, 4, Runtime(device="cpu"), count, "pieces", 12)
    assert found == [(piece, 1) for piece in range(4)]
    assert torch.get_num_threads() == 2
    assert "pieces: 12/12" in capsys.readouterr().err
    assert not list(tmp_path.glob("progress-*"))
    with pytest.raises(UserError, match="piece 1 failed"):
        workers.each(functools.partial(announced, fail=1), 3, Runtime(device="cpu"), count, "pieces", 9)


def killed(piece: int, device: torch.device, advance: Advance) -> None:
    if piece == 1:
        os._exit(9)


def test_a_killed_process_is_said_with_its_remedy(prepared: Path) -> None:
    with pytest.raises(UserError, match=r"memory ran out: set runtime\.workers below 2"):
        workers.each(killed, 2, Runtime(device="cpu"), 2, "pieces", 2)


CALLER = """
import os, signal, threading, time
from src.settings.runtime import Runtime
from src.process import workers
from tests.test_experts_stage import announced
import psutil

def die():
    while len([one for one in psutil.Process().children() if "LokyProcess" in " ".join(one.cmdline())]) < 2:
        time.sleep(0.01)
    time.sleep({later})
    os.kill(os.getpid(), signal.SIGKILL)

threading.Thread(target=die).start()
workers.each(announced, 2, Runtime(device="cpu"), 2, "pieces", 6)
time.sleep(600)
"""


@pytest.mark.parametrize("later", [0, 1])
def test_no_process_outlives_a_caller_that_was_killed_while_it_started(later: float, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", CALLER.format(later=later)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,  # its processes hold it open, so that this returns when all of them have ended
        timeout=60,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr


def held(piece: int, device: torch.device, advance: Advance) -> int:
    time.sleep(1.2)  # joblib looks at a process's memory once a second
    tensors = [torch.ones(4000) for _ in range(30000 * (piece > 1))]  # 480 MB that glibc would keep
    del tensors
    return os.getpid()


def test_a_process_that_has_held_much_memory_goes_on(prepared: Path) -> None:
    get_reusable_executor().shutdown(wait=True)
    found, _ = workers.each(held, 8, Runtime(device="cpu"), 2, "pieces", 8)
    assert len(set(found)) == 2


def test_processes_are_as_many_as_pay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "cores", lambda: 8)
    asked, long = Runtime(), workers.SPREAD_FLOPS
    assert workers.processes(asked, CPU, 100, long) == 8
    assert workers.processes(asked, CPU, 5, long) == 5
    assert workers.processes(asked, CPU, 100, long / 2) == 1
    assert workers.processes(asked, torch.device("cuda"), 100, long) == 1
    assert workers.processes(Runtime(threads=3), CPU, 100, long) == 2
    assert workers.processes(Runtime(threads=16), CPU, 100, long) == 1
    assert workers.processes(Runtime(workers=3), CPU, 100, long / 2) == 3
