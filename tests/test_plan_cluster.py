"""plan for many GPUs: its numbers follow from its formulas, every assumption can be changed, and runs take what it says."""

from __future__ import annotations

import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from src import cli
from src.ground.errors import UserError
from src.settings import params as reading
from src.settings import resolved
from src.settings.params import Params
from src.stages import distill, evaluate, experts, plan_cells, plan_cluster, plan_memory, prepare
from src.stages.plan_cluster import Assumptions, Load, Rates
from src.store import checkpoints, cost
from tests.small_run import STORE

CPU = torch.device("cpu")
NEVER_FAIL = Assumptions(start_seconds=1e-9, hours_between_failures=1e12)
LOAD = Load(
    expert=1e12, experts=100, distil=8e12, student=2e12, students=5, exchanged=1.25e9, exchanges=10, iterations=4, images=1e9,
    trajectories=100, trajectory=5e8,
)  # fmt: skip
RATES = Rates(1e10, 1e10, 1e10, "")


def test_times_are_rounds_of_tasks() -> None:
    """100 experts of 100 s on 64 GPUs are two rounds; one distillation uses as many GPUs as share it."""
    found = plan_cluster.plan_of(LOAD, RATES, 64, NEVER_FAIL)
    assert (found.experts, found.distil, found.students) == pytest.approx((200, 800, 200), rel=1e-6)
    shared = plan_cluster.plan_of(LOAD, RATES, 64, replace(NEVER_FAIL, ranks=4, seeds=16))
    assert shared.distil == pytest.approx(200 + 4 * (1.0 + 10 * 50e-6), rel=1e-6)  # 1.25 GB at 10 Gbit/s is a second
    assert plan_cluster.plan_of(LOAD, RATES, 64, replace(NEVER_FAIL, ranks=4, seeds=17)).distil == 2 * shared.distil
    assert found.storage == pytest.approx(100)
    assert found.network == pytest.approx(64 + 100)


def test_what_a_run_does_not_have_takes_no_time() -> None:
    """And has no rate, where rates are measured."""
    baseline = replace(LOAD, expert=0.0, experts=0, distil=0.0, trajectories=0)
    found = plan_cluster.plan_of(baseline, replace(RATES, experts=0.0, distil=0.0), 64, NEVER_FAIL)
    assert (found.experts, found.distil, found.students) == pytest.approx((0, 0, 200), abs=1e-6)


def test_imported_experts_are_kept_but_not_trained() -> None:
    (cell,) = plan_cells.cells_of("cifar10", "mtt", [1], {}).values()
    run, facts = cell
    there = replace(run.experts, settings=run.experts.settings.model_copy(update={"imported": "0" * 64}))
    trained, imported = (plan_cluster.load_of(one, facts, 1) for one in (run, replace(run, buffer=there)))
    assert imported == replace(trained, expert=0.0, experts=0)
    assert (trained.experts, trained.trajectories) == (100, 100)


def test_failures_cost_half_an_interval_and_a_restart() -> None:
    given = replace(NEVER_FAIL, hours_between_failures=100 / 3600, checkpoint_seconds=20, restart_seconds=5)
    assert plan_cluster.plan_of(LOAD, RATES, 100, given).experts == pytest.approx(100 + 15, rel=1e-6)


@pytest.mark.parametrize(
    ("tasks", "slots", "expected"), [([3, 3, 3], 2, 6), ([5, 1, 1, 1], 2, 5), ([1] * 10, 3, 4), ([], 2, 0)]
)
def test_a_slot_takes_the_next_task_when_it_is_free(tasks: list[float], slots: int, expected: float) -> None:
    assert plan_cluster.makespan(tasks, slots) == expected


def test_every_assumption_and_setting_can_be_changed() -> None:
    given, changes = plan_cells.split(["utilisation=0.5", "seeds=3", "experts.count=7", "distill.batch_syn=50"])
    assert (given.utilisation, given.seeds) == (0.5, 3)
    cells = plan_cells.cells_of("imagenet-1k", "mtt", [1, 10], changes)
    loads = [plan_cluster.load_of(run, facts, 1) for run, facts in cells.values()]
    assert [one.experts for one in loads] == [7, 7]
    whole = plan_cells.cells_of("imagenet-1k", "mtt", [1], {"distill.batch_syn": 100})
    (other,) = (plan_cluster.load_of(run, facts, 1) for run, facts in whole.values())
    assert other.distil == 2 * loads[0].distil
    assert loads[0].images == 1_281_167 * 3 * 64 * 64 * 4


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("--gpus 2", "plan what?"),
        ("--gpus 2 --dataset nothing", "there is no preset nothing-ipc1-mtt"),
        ("--gpus 2 --dataset tiny-imagenet --device abacus", "--device abacus is not in the table"),
        ("--gpus 2 --dataset tiny-imagenet --device a100 --set speed=3", "--set speed: no such value"),
        ("--gpus 2 --dataset tiny-imagenet --device a100 --set seeds=0.4", "--set seeds=0.4: give a whole number above 0"),
        ("--gpus 2 --dataset tiny-imagenet --device a100 --set ranks=inf", "--set ranks=inf: give a whole number above 0"),
        ("--gpus 2 --dataset tiny-imagenet --device a100 --set experts.count=0.5", "--set experts.count=0.5: Input should be"),
        ("--gpus 2 --dataset tiny-imagenet --device a100 --set experts.count=-5", "--set experts.count=-5: Input should be"),
        ("--gpus 2 --dataset tiny-imagenet --device a100 --set experts.epochs=nan", "give a number above 0"),
        ("--gpus 2 --run digits-ipc1-ast --ipc 1", "--ipc and --recipe choose presets of a data set, and --run is one"),
        ("--gpus 2 --dataset tiny-imagenet --device a100 --set seeds=x", "--set seeds=x: give a name and a number"),
        ("--gpus 2 --dataset tiny-imagenet --device a100 --set ranks=4", "on more GPUs than the 2 of --gpus"),
        ("--gpus 2 --dataset tiny-imagenet --ipc 1,b", "--ipc '1,b' names no images per class"),
    ],
)
def test_what_can_not_be_planned_is_a_sentence(
    words: str, sentence: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["src.cli", "plan", *words.split()])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code != 0
    assert sentence in capsys.readouterr().err


def test_the_plan_of_an_unknown_device_is_none() -> None:
    assert plan_cluster.published("a100", 0.5).experts == 9.75e12
    with pytest.raises(UserError, match="choose one of t4"):
        plan_cluster.published("none", 1.0)


def timed(work: Any) -> float:
    start = cost.now(CPU)
    work()
    return cost.now(CPU) - start


@pytest.fixture
def params(valid_params: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Params:
    """In seconds of the processor, of which other work on this machine takes none."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(time, "perf_counter", time.process_time)
    valid_params["runtime"] |= {"workers": 1, "checkpoint_seconds": 600.0}
    valid_params["networks"]["D2"] = {"depth": 2, "width": 32}
    valid_params["experts"]["smooth"] |= {"count": 1, "epochs": 30, "batch_size": 64}
    valid_params["distill"]["ast"] |= {"iterations": 40, "syn_steps": 20, "lr_lr": 0.0, "lr_img": 1e-3}
    valid_params["evaluate"]["mtt"] |= {"students": 2, "epochs": 200}
    found = reading.parse(valid_params)
    prepare.run(STORE, resolved.data_set(found, "digits"))
    return found


@pytest.mark.slow
def test_runs_take_what_is_planned(params: Params) -> None:
    """Within a quarter; other work takes the processor's caches now and then, so that one of three times is to."""
    run, found = resolved.run(params, "ten"), []
    facts = plan_memory.facts_of(STORE, run.dataset)
    load = plan_cluster.load_of(run, facts, 1)
    for _ in range(3):
        rates = plan_cluster.measured(run, facts)
        planned = [load.expert / rates.experts, load.distil / rates.distil, load.students * load.student / rates.students]
        for stage, name in (("experts", "smooth"), ("distill", "ten"), ("evaluate", "ten@D2")):
            checkpoints.forget(stage, name)
        taken = [timed(lambda: experts.run(STORE, run.experts))]
        taken += [timed(lambda: distill.run(STORE, run)), timed(lambda: evaluate.run(STORE, run))]
        found.append((planned, taken))
        if taken == pytest.approx(planned, rel=0.25):
            return
    pytest.fail(f"planned and taken: {found}")
