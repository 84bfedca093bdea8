"""`distill --plan`: what it says agrees with what the stages would do, and it makes nothing."""

from __future__ import annotations

import types
from pathlib import Path
from typing import Any

import pytest
import torch

from src.ground import runtime
from src.loops import outer
from src.maths import networks
from src.maths.derivatives import Derivatives
from src.maths.networks import FlatNetwork, ImageShape
from src.settings import resolved
from src.settings.networks import ConvNet
from src.settings.params import Params, load, parse
from src.stages import evaluate, experts, plan, plan_steps, prepare
from src.store.values import Record, SyntheticSet
from tests.called import command
from tests.imports import ROOT
from tests.reference import needs_kernels
from tests.small_run import STORE

RUN = "digits-ipc10-ast"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    monkeypatch.setenv("COLUMNS", "200")
    text = (ROOT / "params.yaml").read_text(encoding="utf-8")
    Path("params.yaml").write_text(
        text.replace("  threads: null", "  threads: 1").replace("  workers: null", "  workers: 1"), encoding="utf-8"
    )
    return tmp_path


def planned(raw: dict[str, Any], **distil: Any) -> tuple[Params, plan_steps.Subject, plan.Plan]:
    """The plan of the run `ten`, with values of its own."""
    raw["runtime"] |= {"compile": "off", "workers": 1}
    raw["runs"]["ten"]["distill"] |= distil
    params = parse(raw)
    prepare.run(STORE, resolved.data_set(params, "digits"))
    subject = plan_steps.Subject(
        resolved.run(params, "ten"), STORE.load_statistics(params.runs["ten"].dataset), torch.device("cpu")
    )
    return params, subject, plan.measure(params.runtime, subject)


def test_the_table_of_a_real_run(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    prepare.run(STORE, resolved.data_set(load(), "digits"))
    before = sorted(Path("data").rglob("*"))
    assert command(f"distill --run {RUN} --plan", monkeypatch) == 0
    shown = capsys.readouterr().out
    rows = ("an inner step", "an iteration", "distilling", "peak memory", "parameters, P", "evaluating", "derivatives")
    assert all(row in shown for row in rows)
    assert "10,986" in shown
    assert "10 experts, 20 epochs" in shown
    assert sorted(Path("data").rglob("*")) == before


@pytest.mark.usefixtures("folder")
def test_numbers_follow_from_the_settings(valid_params: dict[str, Any]) -> None:
    chosen = {"batch_syn": 40, "syn_steps": 4, "trajectories_per_iteration": 3, "iterations": 7}
    _, subject, found = planned(valid_params, **chosen)
    assert found.parameters == FlatNetwork(subject.module()).dimension
    assert found.buffer == pytest.approx(2 * (5 + 1) * found.parameters * 4 / 2**20)
    assert found.stored == pytest.approx(4 * found.parameters * 4 / 2**20)
    assert found.iteration == pytest.approx(found.step * 3 * (40 + 40 + 20 + 40) / 40)
    assert found.distil == pytest.approx(7 * found.iteration)
    assert min(found.step, found.experts, found.evaluate) > 0
    assert found.memory > 50
    assert found.backend == "eager"


@pytest.mark.usefixtures("folder")
def test_the_loss_on_real_images_counts_too(valid_params: dict[str, Any]) -> None:
    """An iteration takes its steps and that; a student that learns by Adam keeps three numbers a parameter and step."""
    real = {"images": 64, "max_skip": 6}
    chosen = {"objective": "real", "inner_optimiser": "adam", "lr_img": 0.01, "syn_steps": 4, "iterations": 2, "real": real}
    _, subject, found = planned(valid_params, **chosen)
    assert found.beyond > 0 and found.iteration == pytest.approx(4 * found.step + found.beyond)
    assert found.stored == pytest.approx(4 * 3 * found.parameters * 4 / 2**20)
    assert "64 images, and 3 steps skipped on average" in str([*plan._table(subject, found).columns[1].cells])


@needs_kernels
def test_sweeps_that_are_kept_are_counted() -> None:
    spec, images = ConvNet(depth=2, width=8), torch.randn(10, 1, 8, 8)
    network = FlatNetwork(networks.build(spec, ImageShape(1, 8, 10), torch.Generator()))
    derivatives = Derivatives(network, backend="kernels", memory_mib=1)
    distil = types.SimpleNamespace(iterations=3, inner_optimiser="sgd")
    subject: Any = types.SimpleNamespace(distil=distil, batch=10, noise=lambda _: (images, None))
    thetas = 6 * network.dimension * 4
    kept = derivatives.kept_bytes(images, thetas, 6)
    assert kept > 0 and plan._stored(subject, network, derivatives, 6) == (thetas + kept) / 2**20


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize("ipc", ["all", 10])
def test_a_run_that_is_not_distilled(ipc: str | int, valid_params: dict[str, Any]) -> None:
    valid_params["runs"]["ten"]["ipc"] = ipc
    _, subject, found = planned(valid_params, iterations=0)
    assert (found.step, found.distil, found.stored) == (0, 0, 0)
    assert subject.count == (1077 if ipc == "all" else 100)


class AskedError(Exception):
    """Carries the amount of work that a stage asks to compile for, and ends the stage."""


@pytest.mark.usefixtures("folder")
def test_it_compiles_where_the_stages_compile(valid_params: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """They ask the same rule with the same amount of work."""
    chosen = {"batch_syn": 40, "syn_steps": 4, "trajectories_per_iteration": 3, "iterations": 7}
    params, subject, _ = planned(valid_params, **chosen)
    asked: list[float] = []

    def note(_: object, flops: float) -> tuple[bool, str]:
        asked.append(flops)
        return False, ""

    def stop(_: object, flops: float) -> tuple[bool, str]:
        raise AskedError(flops)

    monkeypatch.setattr(runtime, "compiles", note)
    plan.measure(params.runtime, subject)
    monkeypatch.setattr(runtime, "compiles", stop)
    images, labels = subject.noise(subject.count)
    statistics, cpu, syn_lr = subject.statistics, torch.device("cpu"), torch.tensor(0.01)
    synthetic = SyntheticSet(images, labels, syn_lr)
    stages = (
        lambda: outer.differentiate(subject.distil, params.runtime, subject.spec, FlatNetwork(subject.module()), images),
        lambda: experts.train_all(STORE, resolved.buffer(params, "smooth"), statistics, Record("", {}), cpu),
        lambda: evaluate.predict_all(
            STORE, resolved.run(params, "ten"), ("D2", params.networks["D2"]), synthetic, statistics, cpu
        ),
    )
    for flops, stage in zip(asked, stages, strict=True):
        with pytest.raises(AskedError) as found:
            stage()
        assert found.value.args == (flops,)


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (f"distill --run {RUN} --plan", "make it with `python -m src.cli prepare --dataset digits`"),
        ("distill --run nothing --plan", "no run is named 'nothing'"),
    ],
)
def test_what_is_missing_is_a_sentence(
    words: str, sentence: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(words, monkeypatch) != 0
    assert sentence in capsys.readouterr().err


def test_what_stands_for_the_data_has_their_shape(valid_params: dict[str, Any], folder: Path) -> None:
    _, subject, _ = planned(valid_params)
    images, labels = subject.noise(13)
    split = STORE.load_split("digits", "train")
    assert images.shape[1:] == split.images.shape[1:]
    assert labels.max() < len(subject.statistics.classes)
