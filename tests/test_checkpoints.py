"""Checkpoints, stopping, second chances after divergence, and what a full disk or a killed writer leaves."""

from __future__ import annotations

import math
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from src.ground.errors import ArtifactError, DivergenceError, InterruptedWorkError, UserError
from src.loops import expert as experts
from src.loops import outer
from src.loops.expert import Expert
from src.loops.outer import Distilling, Loop
from src.maths import distillation, expert_training, protocol
from src.maths.derivatives import Derivatives
from src.maths.distillation import Figures, State
from src.maths.expert_training import differentiate
from src.maths.networks import FlatNetwork, flatten
from src.maths.pixels import Normalisation
from src.process import stopping
from src.settings import params as reading
from src.settings import resolved
from src.settings.networks import ConvNet
from src.stages import clean, work
from src.store import checkpoints, files
from src.store.checkpoints import Work
from src.store.values import Record
from tests import test_expert_training, test_protocol
from tests.imports import ROOT
from tests.reference import small_network
from tests.small_run import STORE

CPU = torch.device("cpu")
WORK = Work("experts", "e", {"record": {"lr": 0.1}, "backend": "eager"}, seconds=0)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    return tmp_path


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# -- the file


SPEC = ConvNet(depth=2, width=8)


def test_work_that_begins_anew_says_why(capsys: pytest.CaptureFixture[str]) -> None:
    params = reading.load(ROOT / "params.yaml")
    settings = {"lr": 0.1, "network": {"width": 32}, "momentum": 0.0, "epochs": 3}
    before = Record("trajectory", settings, {"train": "1a"}, {"packages": {"torch": "1"}, "runtime": {"threads": 2}})
    work.of(params.runtime, "experts", "e", before, SPEC, "eager").checkpoint().save({}, {})
    assert work.of(params.runtime, "experts", "e", before, SPEC, "eager").checkpoint().load() == ({}, {})
    assert capsys.readouterr().err == "", "the same work goes on"
    changed = replace(before, settings={**settings, "lr": 0.2, "network": {"width": 64}})
    work.of(params.runtime, "experts", "e", changed, SPEC, "kernels")
    assert capsys.readouterr().err == (
        "experts e: earlier work is not gone on with, as its backend was eager, is kernels, lr was 0.1, is 0.2, "
        "network.width was 32, is 64\n"
    )
    elsewhere = replace(before, inputs={"train": "2b"}, provenance={"packages": {"torch": "2"}, "runtime": {"threads": 1}})
    work.of(params.runtime, "experts", "e", elsewhere, SPEC, "eager")
    said = capsys.readouterr().err
    wanted = ("train was 1a, is 2b", "packages.torch was 1, is 2", "runtime.threads was 2, is 1")
    assert all(words in said for words in wanted), said
    everything = replace(elsewhere, settings=dict.fromkeys(settings, 9))
    work.of(params.runtime, "experts", "e", everything, SPEC, "eager")
    assert capsys.readouterr().err.endswith(" and 3 more\n")
    work.of(params.runtime, "experts", "another", before, SPEC, "eager")
    assert capsys.readouterr().err == "", "nothing of this name lies there"


def test_what_is_saved_comes_back() -> None:
    checkpoint, theta = WORK.checkpoint(3), torch.rand(7)
    assert checkpoint.load() is None
    assert checkpoint.facts() == {}
    facts = {"epochs": 2, "rows": [{"loss": 0.1 + 0.2, "nan": math.inf}]}
    checkpoint.save({"theta": theta, "same": theta, "none": torch.empty(0)}, facts)
    found = WORK.checkpoint(3).load()
    assert found is not None
    assert torch.equal(found[0]["theta"], theta)
    assert found[0]["none"].shape == (0,)
    assert found[1] == checkpoint.facts() == facts
    assert WORK.checkpoint(2).load() is None
    assert checkpoint.path.is_relative_to(Path(".cache/checkpoints/experts/e").resolve())
    checkpoint.remove()
    assert checkpoint.load() is None


def test_other_definitions_have_other_files() -> None:
    others = (replace(WORK, name="f"), replace(WORK, stage="distill"), replace(WORK, definition={"record": {"lr": 0.2}}))
    assert len({work.checkpoint().path for work in (WORK, *others)}) == 4
    assert replace(WORK, seconds=9.0).checkpoint().path == WORK.checkpoint().path


def test_seconds_add_up_over_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(checkpoints.time, "monotonic", lambda: now[0])
    for process in range(3):
        checkpoint = WORK.checkpoint()
        checkpoint.load()
        assert checkpoint.seconds_before == 10.0 * process
        now[0] += 10.0
        checkpoint.save({}, {})
        now[0] += 5.0  # what was lost does not count
    assert WORK.seconds_spent(1) == WORK.seconds_spent(3) == 30.0
    waiting = WORK.checkpoint()
    now[0] += 7.0  # for another process at this piece
    waiting.load()
    waiting.save({}, {})
    assert WORK.seconds_spent(1) == 30.0


@pytest.mark.parametrize("keep", [0, 5, 60, -1])
def test_a_damaged_one_is_deleted_and_said(keep: int, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint = WORK.checkpoint()
    checkpoint.save({"theta": torch.rand(7)}, {"epochs": 2})
    checkpoint.path.write_bytes(checkpoint.path.read_bytes()[:keep])
    assert checkpoint.facts() == {}
    assert checkpoint.load() is None
    assert "is damaged" in capsys.readouterr().err
    assert not checkpoint.path.exists()


def test_one_that_cannot_be_opened_stays_and_is_said() -> None:
    checkpoint = WORK.checkpoint()
    checkpoint.path.parent.mkdir(parents=True, exist_ok=True)
    checkpoint.path.symlink_to(checkpoint.path)  # a loop, which nobody can open, whatever their rights
    assert checkpoint.facts() == {}
    with pytest.raises(ArtifactError, match=r"can't be opened \(Too many levels of symbolic links\): permit reading it"):
        checkpoint.load()
    assert checkpoint.path.is_symlink()


def test_pauses_follow_the_setting_and_the_cost(monkeypatch: pytest.MonkeyPatch) -> None:
    now, writes = [0.0], []
    monkeypatch.setattr(checkpoints.time, "monotonic", lambda: now[0])

    def write(*_: Any) -> None:
        writes.append(now[0])
        now[0] += 3.0

    monkeypatch.setattr(files, "write_tensors", write)
    with replace(WORK, seconds=60.0).checkpoint().kept() as keep:
        while now[0] < 500:
            keep(lambda: ({}, {}))
            now[0] += 1.0
    assert writes == [60.0, 63.0 + 150, 216.0 + 150]


def test_an_interrupted_block_keeps_its_last_step() -> None:
    checkpoint = replace(WORK, seconds=1e9).checkpoint()
    with pytest.raises(InterruptedWorkError), checkpoint.kept() as keep:
        for step in range(5):
            keep(lambda step=step: ({}, {"step": step}))
        raise InterruptedWorkError
    assert checkpoint.facts() == {"step": 4}
    with pytest.raises(ZeroDivisionError), checkpoint.kept() as keep:
        keep(lambda: ({}, {"step": 5}))
        _ = 1 / 0
    assert checkpoint.facts() == {"step": 4}


@pytest.mark.parametrize("damage", ["tensors", "facts", "another's"])
def test_one_that_can_be_read_but_is_not_as_written_is_deleted(damage: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A flipped bit of a weight or of a number would be gone on with; and so would another expert's."""
    checkpoint, other = WORK.checkpoint(0), WORK.checkpoint(1)
    for one in (checkpoint, other):
        one.save({"theta": torch.ones(7)}, {"epochs": 2})
    data = bytearray(checkpoint.path.read_bytes())
    if damage == "tensors":
        data[-1] ^= 1
    elif damage == "facts":
        data[data.index(b"epochs") + 10] ^= 1
    else:
        data = bytearray(other.path.read_bytes())
    checkpoint.path.write_bytes(data)
    assert checkpoint.facts() == ({"epochs": 2} if damage == "tensors" else {})  # which reads no tensors
    assert checkpoint.load() is None
    assert "is damaged" in capsys.readouterr().err
    assert not checkpoint.path.exists()


def test_the_same_artifacts_at_once_are_refused() -> None:
    with checkpoints.at_work("distill", "r"):
        with pytest.raises(UserError, match="distill r is being made by another process"), checkpoints.at_work("distill", "r"):
            pass
        with checkpoints.at_work("distill", "s"):
            pass
    with checkpoints.at_work("distill", "r"):
        pass


def test_what_another_process_is_at_is_left_alone(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a temporary copy of the repository, say, which shares its checkpoints."""
    other = replace(WORK, definition={"record": {"lr": 0.2}})
    other.checkpoint().save({"x": torch.ones(1)}, {})
    aged(other.checkpoint().path)
    monkeypatch.setenv("DVC_ROOT", str(folder))
    with other.checkpoint().alone():
        (folder / "copy").mkdir()
        monkeypatch.chdir(folder / "copy")
        WORK.forget_others()
        assert other.checkpoint().path.exists()
    WORK.forget_others()
    assert not other.checkpoint().path.exists()


def aged(path: Path) -> None:
    """As if nobody had saved it since a month and a day."""
    before = time.time() - checkpoints.KEPT_SECONDS - 24 * 3600
    os.utime(path, (before, before))


def test_other_settings_work_is_kept_for_a_month() -> None:
    """That of an experiment beside this one, say, which was stopped and goes on later."""
    other = replace(WORK, definition={"record": {"lr": 0.2}})
    for one in (WORK, other):
        for piece in range(2):
            one.checkpoint(piece).save({}, {})
    aged(other.checkpoint(1).path)
    aged(WORK.checkpoint(1).path)
    WORK.forget_others()
    assert [one.checkpoint(piece).path.exists() for one in (WORK, other) for piece in range(2)] == [True, True, True, False]
    WORK.forget()
    assert [one.checkpoint(0).path.exists() for one in (WORK, other)] == [False, True]


def test_who_waits_for_another_process_can_be_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    def stop() -> None:
        raise InterruptedWorkError

    monkeypatch.setattr(checkpoints, "WAIT_SECONDS", 0.01)
    monkeypatch.setattr(checkpoints.stopping, "check", stop)
    with WORK.checkpoint().alone(), pytest.raises(InterruptedWorkError), WORK.checkpoint().alone():
        pass


def test_what_comes_back_lies_where_torch_has_its_numbers() -> None:
    """A file's places are odd ones, at which products of matrices may round otherwise."""
    WORK.checkpoint().save({f"{n}": torch.ones(n) for n in range(1, 9)}, {})
    found = WORK.checkpoint().load()
    assert found is not None
    assert {tensor.data_ptr() % 16 for tensor in found[0].values()} == {0}


# -- stopping


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_stops_the_next_step_and_says_so(number: signal.Signals) -> None:
    before, step = signal.getsignal(number), stopping.interruptible(lambda x: x + 1)
    with stopping.heeded():
        assert step(1) == 2
        signal.raise_signal(number)
        assert stopping.requested()
        with pytest.raises(InterruptedWorkError, match=f"Stopped by {number.name}: what is done is kept") as error:
            step(1)
        assert error.value.exit_code == 128 + number
    assert signal.getsignal(number) is before
    assert step(1) == 2


def test_ignored_signals_stay_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stopping.heeded():
            signal.raise_signal(signal.SIGHUP)
            assert not stopping.requested()
    finally:
        signal.signal(signal.SIGHUP, before)


# -- state in, state out


@pytest.mark.parametrize("optimiser", ["sgd", "adam"])
def test_an_expert_goes_on_from_any_step_bit_for_bit(optimiser: str) -> None:
    chosen = test_expert_training.settings(**test_expert_training.AST, optimiser=optimiser, epochs=3, lr=0.01)
    images, labels = torch.randn(22, 2, 8, 8, generator=seeded(1)), torch.randint(5, (22,), generator=seeded(2))
    network = small_network().float()
    gradient = differentiate(FlatNetwork(network), chosen)
    whole = list(expert_training.steps(expert_training.start(network, seeded(3)), images, labels, chosen, gradient))
    assert len(whole) == 9
    for index, state in enumerate(whole):
        stored = Expert(state, (state.theta,), ()).stored(chosen)
        WORK.checkpoint(index).save(*stored)
        found = WORK.checkpoint(index).load()
        assert found is not None
        begun = experts.restored(found, CPU).state
        rest = list(expert_training.steps(begun, images, labels, chosen, gradient))
        assert len(rest) == len(whole) - index - 1
        last = rest[-1] if rest else begun
        assert all(
            torch.equal(getattr(last, name), getattr(whole[-1], name)) for name in ("theta", "moments", "figures", "draws")
        )
        assert torch.equal(torch.tensor([last.epochs, last.steps]), torch.tensor([3, 9]))


def test_students_go_on_from_any_epoch_bit_for_bit() -> None:
    chosen, images = test_protocol.settings(), torch.randn(10, 2, 8, 8, generator=seeded(0))
    gradients = protocol.side_by_side(Derivatives(FlatNetwork(small_network().float())).loss)
    thetas = torch.stack([flatten(small_network(seed).float()) for seed in range(2)])
    rest = (images, test_protocol.LABELS, 0.05, chosen, gradients)
    whole = list(protocol.epochs(protocol.start(thetas, [seeded(5), seeded(6)]), *rest))
    for epoch, students in enumerate(whole[:-1], start=1):
        assert students.epochs == epoch
        assert torch.equal(list(protocol.epochs(students, *rest))[-1].thetas, whole[-1].thetas)


def state_at(value: float) -> State:
    return State(*(torch.full(shape, value) for shape in ((2, 1, 2, 2), (), (2, 1, 2, 2), ())))


# -- divergence


@pytest.fixture
def raw(valid_params: dict[str, Any]) -> dict[str, Any]:
    valid_params["distill"]["ast"] |= {"on_divergence": "restore", "iterations": 250, "lr_img": 8.0}
    return valid_params


def loop_of(raw: dict[str, Any], monkeypatch: pytest.MonkeyPatch, diverges: Callable[[int, float], bool]) -> Loop:
    """A loop whose images go up by lr_img, and which diverges where told."""
    calls = {"iteration": 0}

    def drawn(loop: Loop, iteration: int) -> tuple[dict[str, str], list[Any], torch.Generator]:
        calls["iteration"] = iteration
        return {"expert": "0", "start_epoch": "0"}, [], seeded(iteration)

    def iterate(network: Any, derivatives: Any, state: State, labels: Any, starts: Any, settings: Any, *more: Any) -> Any:
        if diverges(calls["iteration"], settings.lr_img):
            raise DivergenceError("too far")
        return replace(state, images=state.images + settings.lr_img), Figures([0.5], 0.1, 1.0, 1.0)

    monkeypatch.setattr(outer, "_drawn", drawn)
    monkeypatch.setattr(distillation, "iterate", iterate)
    space = Normalisation(torch.zeros(1), torch.ones(1))
    params = reading.parse(raw)
    return Loop("one", params.seed, params.distillations["one"], 2, None, None, None, torch.zeros(2), space)  # type: ignore[arg-type]


def all_of(loop: Loop, at: Distilling | None = None) -> Distilling:
    at = at or outer.first(loop, torch.zeros(2, 1, 2, 2))
    for _ in range(2000):
        if at.iteration == loop.distil.iterations:
            break
        at = outer.iterate(loop, at)
    return at


def test_divergence_restores_the_last_anchor_with_half_the_step(
    raw: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    at = all_of(loop_of(raw, monkeypatch, lambda iteration, lr: (iteration == 130 and lr > 4) or (iteration == 210 and lr > 2)))
    assert at.restores == (130, 210)
    assert [row["iteration"] for row in at.rows] == list(range(250))
    assert [at.rows[i]["lr_img"] for i in (0, 99, 100, 199, 200, 249)] == [8.0, 8.0, 4.0, 4.0, 2.0, 2.0]
    assert at.state.images.flatten()[0] == 100 * 8 + 100 * 4 + 50 * 2
    assert [*at.snapshots] == [0, 250]
    said = capsys.readouterr().err
    assert "run one diverged at iteration 130 (expert 0, start epoch 0, last good matching loss 0.5): too far" in said
    assert "Restored at iteration 100 with lr_img 4" in said


def test_the_outer_loop_comes_back_from_its_checkpoint(raw: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Also into a run with more iterations, or with fewer; images are kept at the moments that this run would have kept."""
    raw["distill"]["ast"]["snapshot_every"] = 100
    of = {}
    for total in (200, 250, 300, 400):
        raw["distill"]["ast"]["iterations"] = total
        of[total] = loop_of(raw, monkeypatch, lambda iteration, lr: iteration == 210 and lr > 4)
    WORK.checkpoint().save(*all_of(of[250]).stored())
    found = WORK.checkpoint().load()
    assert found is not None
    assert outer.resumed(of[250], None) is None
    for total, moments in ((250, [0, 100, 200, 250]), (300, [0, 100, 200, 300]), (400, [0, 100, 200, 300, 400])):
        at = outer.resumed(of[total], found)
        assert at is not None
        assert at.iteration == 250
        at, whole = all_of(of[total], at), all_of(of[total])
        assert (at.rows, at.restores, [*at.snapshots]) == (whole.rows, (210,), moments)
        assert all(torch.equal(one.pixels, whole.snapshots[moment].pixels) for moment, one in at.snapshots.items())
        for one, other in ((at.state, whole.state), (at.anchor, whole.anchor)):
            assert all(torch.equal(value, vars(other)[name]) for name, value in vars(one).items() if value is not None)


def test_divergence_ends_the_run_where_wanted_or_in_vain(raw: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DivergenceError, match=r"diverged at iteration 130 .*lr_img was halved 3 times"):
        all_of(loop_of(raw, monkeypatch, lambda iteration, lr: iteration == 130))
    raw["distill"]["ast"]["on_divergence"] = "stop"
    with pytest.raises(DivergenceError, match=r"iteration 0 .*no good iteration before it.*set on_divergence to restore"):
        all_of(loop_of(raw, monkeypatch, lambda iteration, lr: True))


@pytest.mark.parametrize(("loss", "image"), [(1001.0, 1.0), (1.0, 10001.0)])
def test_absurd_numbers_are_divergence(loss: float, image: float, raw: dict[str, Any]) -> None:
    settings = reading.parse(raw).distillations["one"]
    distillation._check(Figures([999.0], 0.1, 1.0, 1.0), state_at(9999.0), settings)
    with pytest.raises(DivergenceError, match="lower lr_img"):
        distillation._check(Figures([loss], 0.1, 1.0, 1.0), state_at(image), settings)


# -- the file system


def test_a_killed_writer_leaves_nothing_in_the_folder_of_trajectories() -> None:
    code = (
        "import os, safetensors.torch, torch; from src.store.store import Store; from src.store.values import Record\n"
        "safetensors.torch.save_file = lambda tensors, file, metadata: (file.write_bytes(b'x'), os.kill(os.getpid(), 9))\n"
        "Store().save_trajectory('e', 0, torch.ones(2, 3), Record('trajectory', {}))"
    )
    STORE.save_trajectory("e", 1, torch.ones(2, 3), Record("trajectory", {}))
    subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(ROOT)}, check=False)
    assert [path.name for path in STORE.trajectories_folder("e").iterdir()] == ["001.safetensors"]
    assert len(list(Path("data/experts/e").glob(".000.safetensors.*.tmp"))) == 1
    STORE.save_trajectory("e", 0, torch.ones(2, 3), Record("trajectory", {}))
    assert [path.name for path in Path("data/experts/e").iterdir()] == ["trajectories"]


def test_a_full_disk_is_a_sentence_and_leaves_the_old_checkpoint() -> None:
    checkpoint = WORK.checkpoint()
    checkpoint.save({"theta": torch.ones(10)}, {"epochs": 1})
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        with pytest.raises(ArtifactError, match=r"can't be written .*free space or permit writing there"):
            checkpoint.save({"theta": torch.ones(100_000)}, {"epochs": 2})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)
    assert checkpoint.facts() == {"epochs": 1}
    assert [path.name for path in checkpoint.path.parent.iterdir()] == [checkpoint.path.name]


def test_a_folder_that_takes_no_file_is_a_sentence() -> None:
    Path(".cache").write_text("in the way")
    with pytest.raises(ArtifactError, match="can't be written"), checkpoints.at_work("distill", "r"):
        pass


# -- clean


def test_clean_deletes_what_is_stale_and_no_more(
    valid_params: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    params = reading.parse(valid_params)
    definitions = {("experts", "e"): WORK.definition, ("distill", "lost"): None}
    known = {key: {k: v for k, v in value.items() if k != "backend"} if value else None for key, value in definitions.items()}
    monkeypatch.setattr(clean, "_definitions", lambda store, pipeline: known)
    works = {
        "current": WORK,
        "stale": replace(WORK, definition={"record": {"lr": 0.2}, "backend": "eager"}),
        "gone": replace(WORK, name="renamed"),
        "unknown": Work("distill", "lost", {}, 0),
        "study": Work("experts", "r-0123456789ab", {}, 0),
        "snapshots": Work("evaluate", "snapshot-100-val-r@ConvNet", {}, 0),
    }
    paths = {name: work.checkpoint().path for name, work in works.items()}
    for one in works.values():
        one.checkpoint().save({}, {})
    paths["broken"] = paths["stale"].with_name("x.safetensors")
    paths["broken"].write_bytes(b"no tensors")
    paths["stray"] = checkpoints.folder() / "left.safetensors"  # not where any is put
    paths["stray"].write_bytes(b"no tensors")
    os.utime(paths["stale"], (time.time() - 7200, time.time() - 7200))
    clean.run(STORE, resolved.pipeline(params), yes=False, everything=False)
    assert all(path.exists() for path in paths.values())
    shown = capsys.readouterr()
    assert "4 of 8 files" in shown.err
    assert "2 h 0 min" in shown.out
    clean.run(STORE, resolved.pipeline(params), yes=True, everything=False)
    assert {name for name, path in paths.items() if path.exists()} == {"current", "unknown", "study", "snapshots"}
    clean.run(STORE, resolved.pipeline(params), yes=True, everything=True)
    assert not [name for name, path in paths.items() if path.exists()]
