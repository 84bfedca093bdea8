"""`distill --plan --device cuda --memory GIB`: what is counted is what the loops take, and what it advises fits."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from src.editing import presets
from src.loops import counted, expert_memory, student_memory
from src.loops.counted import FLOAT, Task
from src.maths import networks
from src.maths.networks import FlatNetwork, ImageShape
from src.settings import resolved
from src.settings.distillation import Distillation
from src.settings.experts import Experts
from src.settings.networks import MLP, ConvNet
from src.settings.params import parse
from src.settings.protocols import Protocol
from src.stages import plan_memory, prepare
from src.stages.plan_memory import GIB, Facts, Needs
from tests.called import command
from tests.imports import ROOT
from tests.small_run import STORE

SHAPE = ImageShape(3, 16, 4)
TASK = Task(ConvNet(depth=2, width=16), SHAPE, bfloat16=False)
EXPERTS = Experts(dataset="", network="", count=9, epochs=9, batch_size=8, lr=0.1)
METHOD = Distillation(initialisation="random", iterations=9, syn_steps=20)
STUDENTS = Protocol(students=3, epochs=9)


@pytest.fixture(autouse=True)
def _what_was_imported_is_not_searched() -> None:
    """For garbage, as each count begins with."""
    gc.freeze()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    monkeypatch.setenv("COLUMNS", "200")
    Path("params.yaml").write_text((ROOT / "params.yaml").read_text(encoding="utf-8"), encoding="utf-8")
    return tmp_path


def test_an_mlp_of_one_layer_by_its_closed_form() -> None:
    """A huge last layer: all else is small beside P numbers, of which the inner loop holds one block and a handful more."""
    task = Task(MLP(family="MLP", depth=1, width=1), ImageShape(1, 224, 2), bfloat16=False)
    parameters = 224 * 224 + 1 + 2 + 2
    few, many = (plan_memory.distilling(task, METHOD.model_copy(update={"syn_steps": n}), 2, 0) for n in (20, 120))
    assert many - few == 100 * FLOAT * parameters
    block = FLOAT * parameters * 21
    assert block < few < block + FLOAT * parameters * 40


@pytest.mark.parametrize(
    "method",
    [
        {"labels": "learned", "lr_label": 1.0},
        {"labels": "expert", "gradient": "tesla"},
        {"target": "nearest", "ema": 0.9},
        {"objective": "both", "real": {"images": 8}},
        {"objective": "real", "real": {"images": 8}, "inner_optimiser": "adam", "outer_optimiser": "adam"},
    ],
)
def test_every_method_is_counted(method: dict[str, Any]) -> None:
    """Another step keeps P numbers, 3 P of them with Adam inside; other images of the data set wait on the device."""
    settings = Distillation(initialisation="random", iterations=1, syn_steps=4, **method)
    found, longer = (
        plan_memory.distilling(TASK, settings.model_copy(update={"syn_steps": n}), 8, real) for n, real in ((4, 8), (14, 18))
    )
    parameters = FlatNetwork(networks.build(TASK.spec, TASK.shape, torch.Generator())).dimension
    kept = 10 * parameters * FLOAT * (3 if "inner_optimiser" in method else 1)
    assert longer - found == kept + (TASK.image_bytes(10) if "real" in method else 0)


def test_memory_grows_evenly() -> None:
    """What is extrapolated: experts by their number and batch, images of a step by theirs."""
    one, two, nine = (expert_memory.experts(TASK, EXPERTS, 100, 20, count) for count in (1, 2, 9))
    assert nine - one == pytest.approx(8 * (two - one), rel=0.02)
    most = expert_memory.side_by_side(TASK, EXPERTS, 100, 20, 9, 1.01 * nine / counted.SHARE)
    assert most == 9
    assert expert_memory.side_by_side(TASK, EXPERTS, 100, 20, 9, 0.99 * nine / counted.SHARE) == 8
    more_data = expert_memory.experts(TASK, EXPERTS, 1100, 20, 1)
    assert more_data - one == TASK.image_bytes(1000)


def test_the_whole_inner_loop_takes_what_is_extrapolated_from_its_first_steps() -> None:
    def whole() -> None:
        plan_memory._iterate(TASK, METHOD, 8)

    measured = plan_memory.fake_cuda.peak(whole, plan_memory.READS)
    assert plan_memory.distilling(TASK, METHOD, 8, 0) == pytest.approx(measured, rel=0.01)


def test_it_is_what_a_step_takes_on_this_machine() -> None:
    """Roughly: the resident memory by which a process grows, where convolutions keep copies of what they read.

    Under an allocator that gives back what is free: the stages' own keeps it, in pieces whose sum differs from run to run.
    """
    code = """
import torch
from src.ground import runtime
from src.loops.counted import Task
from src.maths import distillation, networks
from src.maths.derivatives import Derivatives
from src.maths.distillation import Start
from src.maths.networks import FlatNetwork, ImageShape
from src.settings.distillation import Distillation
from src.settings.networks import ConvNet
torch.set_num_threads(1)
def peak(): return runtime.peak_memory_mib(torch.device('cpu')) * 2**20
def iterate(count):
    spec, shape = ConvNet(depth=3, width=64), ImageShape(3, 32, 10)
    network = FlatNetwork(networks.build(spec, shape, torch.Generator()))
    settings = Distillation(initialisation="random", iterations=1, syn_steps=2)
    images, labels = torch.randn(count, 3, 32, 32), torch.arange(count) % 10
    starts = [Start(torch.randn(3, network.dimension) * 0.01, 0)]
    state = distillation.start(images, settings)
    distillation.iterate(network, Derivatives(network), state, labels, starts, settings, torch.Generator())
iterate(2)
before = peak()
iterate(200)
print(peak() - before)
"""
    env = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=env, capture_output=True, text=True, check=True)
    task = Task(ConvNet(depth=3, width=64), ImageShape(3, 32, 10), bfloat16=False)
    expected = plan_memory.distilling(task, METHOD.model_copy(update={"syn_steps": 2}), 200, 0)
    assert 0.8 < float(found.stdout) / expected < 1.5


def needs(shape: ImageShape = SHAPE, **changes: Any) -> Needs:
    preset = presets.load()["cifar10-ipc10-ast-w32"]
    run = resolved.run(parse({"seed": 0, "report": {"title": "x"}, **preset.sections}), preset.name)
    return plan_memory.needs_of(replace(run, **changes), Facts(shape, 500, 100, 100))


@pytest.mark.slow
def test_what_it_says_to_lower_then_fits() -> None:
    """And little more would."""
    found = needs()
    assert found.distil is not None
    assert found.experts is not None
    for part in (found.distil, found.experts, found.students):
        half = part.smaller(part.batch // 2)
        limit = (part.bytes + half) / 2
        largest = part.largest(limit)
        assert part.batch // 2 <= largest < part.batch
        assert part.smaller(largest) <= 1.01 * limit
        assert part.smaller(largest + 1) > 0.93 * limit
        assert part.largest(0.0) == 0
        assert part.largest(2 * part.bytes) == part.batch


def test_answers() -> None:
    found = needs()
    assert plan_memory.answer(found, 80 * GIB) == "10 experts"
    assert plan_memory.answer(replace(found, experts=None), 80 * GIB) == "fits"
    assert found.experts is not None
    between = (found.experts.bytes + found.experts.smaller(found.experts.batch // 2)) / 2 / counted.SHARE
    assert "experts.batch_size" in plan_memory.answer(found, between)
    assert plan_memory.answer(found, 1e5).startswith("too small for experts.batch_size 1")
    assert plan_memory._lowered(found, 1e5, "lower {} to {}")[0] == "too small for experts.batch_size 1"
    assert plan_memory._lowered(found, between, "lower {} to {}")[0].startswith("lower experts.batch_size to ")


def test_students_are_trained_one_by_one_where_they_do_not_fit_together() -> None:
    together, alone = (student_memory.students(TASK, STUDENTS, 40, 10, together) for together in (True, False))
    assert 3 * alone <= together  # vmap keeps more of each than autograd does
    assert student_memory.fit(TASK, STUDENTS, 40, 10, 1.01 * together / counted.SHARE)
    assert not student_memory.fit(TASK, STUDENTS, 40, 10, 0.99 * together / counted.SHARE)
    found = needs()
    assert found.evaluate(GIB * 80) is found.students
    assert found.evaluate(1.0) is found.student


def test_every_preset_is_of_a_data_set_whose_size_is_known() -> None:
    for preset in presets.load().values():
        run = resolved.run(parse({"seed": 0, "report": {"title": "x"}, **preset.sections}), preset.name)
        facts = plan_memory.facts_known(run.dataset.settings)
        assert facts.shape.size >= 28
        assert facts.train > facts.val > 0


def test_what_is_known_is_what_is_prepared(valid_params: dict[str, Any], folder: Path) -> None:
    params = parse(valid_params)
    dataset = resolved.data_set(params, "digits")
    known = plan_memory.facts_of(STORE, dataset)
    prepare.run(STORE, dataset)
    found = plan_memory.facts_of(STORE, dataset)
    assert known.shape == found.shape
    assert (known.train, known.val, known.scored) == pytest.approx((found.train, found.val, found.scored), abs=10)


def test_a_run_of_this_repository(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing has to be prepared for it, and nothing is made."""
    assert command("distill --run digits-ipc10-ast --plan --device cuda --memory 80", monkeypatch) == 0
    shown = capsys.readouterr().out
    assert "digits-ipc10-ast on a GPU of 80 GiB" in shown
    assert all(row in shown for row in ("experts side by side", "distilling", "all students at once", "yes"))
    assert not Path("data").exists()


@pytest.mark.slow
def test_the_table_of_presets(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    few = {name: preset for name, preset in presets.load().items() if name in ("cifar10-ipc1-random", "mnist-ipc1-ast")}
    monkeypatch.setattr(presets, "load", lambda: few)
    assert command("preset memory --memory 2 --memory 24", monkeypatch) == 0
    shown = capsys.readouterr().out
    assert "24 GiB" in shown
    assert "fits" in shown
    assert "experts.batch_size" in shown
    assert "7 experts" in shown


RUN = "distill --run digits-ipc10-ast"


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (f"{RUN} --plan --device cuda --memory 0", "--memory is 0: give the GPU's memory in GiB, more than 0"),
        (f"{RUN} --plan --device cuda --memory -3", "--memory is -3"),
        (f"{RUN} --plan --device cuda --memory nan", "--memory is nan"),
        (f"{RUN} --plan --device cuda --memory much", "valid"),
        (f"{RUN} --plan --device tpu --memory 80", "'tpu' is not one of 'cuda'"),
        (f"{RUN} --plan --device cuda", "torch finds none: say how large another is by --memory"),
        (f"{RUN} --plan --memory 80", "--memory belongs to --plan --device cuda"),
        (f"{RUN} --device cuda --memory 80", "--device belongs to --plan"),
        ("preset memory --memory 0", "--memory is 0"),
    ],
)
@pytest.mark.usefixtures("folder")
def test_bad_options(words: str, sentence: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert command(words, monkeypatch) != 0
    error = capsys.readouterr().err
    assert sentence in error
    assert "Traceback" not in error
