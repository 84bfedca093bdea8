"""ablate: its arms differ in parts alone, variants of a seed share experts, a kill loses nothing, the test split is opt-in."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from statistics import mean
from typing import Any

import pytest

from src.settings import resolved
from src.settings.params import load
from src.store import files
from src.studies import ablate, usefulness, variants
from src.studies.usefulness import Experts
from tests import studying
from tests.imports import ROOT
from tests.stored import client_of
from tests.studying import RUN, call
from tests.test_tune import until

MTT = "digits-ipc1-mtt"


def test_every_arm_has_its_parts_and_nothing_else_changes() -> None:
    params = load(ROOT / "params.yaml")
    base = resolved.run(params, RUN)
    arms = {arm.label: arm for arm in ablate.arms(base)}
    assert len(arms) == 1 + 7 + 1 + 7
    assert arms["the run as it is"].parts == (1, 2, 3, 4, 5, 6)
    assert arms["without balanced loss"].parts == (1, 2, 3, 5, 6)
    assert arms["without the experts' parts"].parts == (3, 4, 5, 6)
    assert arms["MTT and weight perturbation"].parts == (6,)
    assert arms["MTT and the experts' parts"].parts == (1, 2)
    protocol = variants.protocol_of(base, params.tune)

    def settings(label: str) -> tuple[dict[str, Any], dict[str, Any]]:
        built = variants.build(base, params.tune, ablate.changes(base, arms[label].parts, 0), protocol)
        return built.run.distillation.model_dump(), built.run.experts.settings.model_dump()

    own = settings("the run as it is")
    assert own[1] == params.experts["digits-smooth"].model_dump()
    for label, field in (("without balanced loss", "balanced_loss"), ("without weight perturbation", "weight_perturbation")):
        distil, experts = settings(label)
        assert {key for key in distil if distil[key] != own[0][key]} == {field}
        assert experts == own[1]
    distil, experts = settings("MTT and gradient penalty")
    assert (experts["gradient_penalty"], experts["clipping_loss"]) == (own[1]["gradient_penalty"], False)
    assert (distil["initialisation"], distil["intermediate_loss"]) == ("random", "off")


def test_a_run_without_parts_has_nothing_to_leave_out() -> None:
    labels = [arm.label for arm in ablate.arms(resolved.run(load(ROOT / "params.yaml"), MTT))]
    assert not [label for label in labels if label.startswith("without")]
    assert "MTT and clipping loss" in labels


def test_no_seed_is_the_run_s_own() -> None:
    """By which a study may have chosen the settings that are taken apart."""
    params = load(ROOT / "params.yaml")
    base = resolved.run(params, RUN)
    lines = ablate._of_seeds(base, params.tune, ablate.arms(base)[0], 3)
    seeds = [line[-1].run.seed for line in lines]
    assert len({*seeds}) == 3 and base.seed not in seeds


def test_a_run_without_parts_counts_once() -> None:
    base = resolved.run(load(ROOT / "params.yaml"), MTT)
    experts = (Experts(0.1, 0.01, 0.5), Experts(0.2, 0.01, 0.6))
    arms = ablate.arms(base)
    found = [ablate.Outcome(arm.label, arm.parts, {"val": (0.7, 0.8)}, experts, arm.against) for arm in arms]
    assert len(ablate._points(found)) == 2 * 4  # experts with no part, with either, with both


def test_sharpness_is_a_part_of_the_experts() -> None:
    params = load(ROOT / "params.yaml")
    base = resolved.run(params, MTT)
    sharp = replace(base.experts, settings=base.experts.settings.model_copy(update={"sharpness": 0.01}))
    arms = ablate.arms(replace(base, buffer=sharp))
    of = {arm.label: (Experts(1.0 + (14 in arm.parts), 0.01, 0.5),) * 2 for arm in arms}
    found = [ablate.Outcome(arm.label, arm.parts, {"val": (0.7, 0.8)}, of[arm.label], arm.against) for arm in arms]
    rows = {row[0]: row[1] for row in ablate._experts_rows(found)}
    assert rows["-"].startswith("1 ") and rows["14"].startswith("2 ")
    assert {"1", "2", "1 2", "14", "-"} <= set(rows)
    assert len({(point.experts, point.group) for point in ablate._points(found)}) == 2


@pytest.mark.parametrize("beginning", ["given", "run"])
def test_a_run_that_begins_with_a_set_keeps_it_without_any_part(beginning: str) -> None:
    base = resolved.run(load(ROOT / "params.yaml"), MTT)
    told = {"initialisation": beginning, "initial_run": "other" if beginning == "run" else None}
    begun = replace(base, distillation=base.distillation.model_copy(update=told))
    assert not any("initialisation" in arm.label or 3 in arm.parts for arm in ablate.arms(begun))
    assert "initialisation" not in ablate.changes(begun, (), 0).distill


def test_the_plot_has_the_arms_that_differ_in_experts_alone() -> None:
    params = load(ROOT / "params.yaml")
    experts = (Experts(0.1, 0.01, 0.5), Experts(0.2, 0.01, 0.6))
    found = [
        ablate.Outcome(arm.label, arm.parts, {"val": (0.7, 0.8)}, experts, arm.against)
        for arm in ablate.arms(resolved.run(params, RUN))
    ]
    found.append(ablate.Outcome("failed", (1,), {}, (), None, problem="diverged"))
    points = ablate._points(found)
    assert len(points) == 2 * (4 + 4)  # experts with both parts, with either, with none
    assert {point.group for point in points} == {"with the run's other parts", "with no other part"}
    assert {(point.experts, point.val_accuracy) for point in points} == {(experts[0], 0.7), (experts[1], 0.8)}
    rows = list(usefulness.correlations(points))
    assert [row[1:3] for row in rows] == [("their squared parameter step", "+1.00"), ("their accuracy", "+1.00")] * 2


def figures(folder: Path) -> dict[str, Any]:
    found = json.loads((folder / f"data/ablate/{RUN}.json").read_text())
    return {one["label"]: one for one in found["variants"]}


def outcome(raw: dict[str, Any]) -> ablate.Outcome:
    return ablate.Outcome(
        raw["label"], tuple(raw["parts"]), raw["seeds"], tuple(Experts(**one) for one in raw["experts"]), None
    )


@pytest.mark.slow
def test_killed_and_gone_on_with(tmp_path: Path) -> None:
    raw = studying.raw_params(students=2, rungs=1)
    raw["runs"][RUN]["distill"] |= {"iterations": 3}
    folder = studying.folder_of(tmp_path, raw)
    (folder / "data/prepare/digits/test.safetensors").rename(folder / "kept")
    words = f"ablate --run {RUN} --seeds 2 --workers 2"
    command = [sys.executable, "-m", "src.cli", *words.split()]
    main = subprocess.Popen(command, cwd=folder, env=studying.environment(folder), stderr=subprocess.DEVNULL)
    until(lambda: len(list(folder.glob("data/ablate/*/results/*.json"))) >= 2)
    main.kill()
    main.wait()
    before = {path: path.stat().st_mtime_ns for path in folder.glob("data/ablate/*/results/*.json")}
    done = call(folder, words)
    assert done.returncode == 0, done.stderr
    assert all(path.stat().st_mtime_ns == before[path] for path in before)
    found = figures(folder)
    assert len(found) == 1 + 5 + 1 + 7  # the run has no penalty
    assert all(len(one["seeds"]["val"]) == 2 and not one["problem"] for one in found.values())
    kinds = ("clipping", "penalty", "both", "neither")
    assert len(list(folder.glob("data/ablate/*/data/experts/*"))) == 2 * len(kinds)
    assert "*: beyond noise" in done.stdout
    assert "test" not in found["MTT: no part"]["seeds"]
    client = client_of(folder)
    rows = client.search_runs([client.get_experiment_by_name("digits-studies").experiment_id])  # type: ignore[union-attr]
    assert {row.info.status for row in rows} <= {"FINISHED", "KILLED"}
    assert sum(row.data.tags["ast.kind"] == "variant" and row.info.status == "FINISHED" for row in rows) >= 2 * 14 - 2
    assert not list((folder / ".cache/tracking").glob("[0-9]*")), "the store took every row"
    (folder / "kept").rename(folder / "data/prepare/digits/test.safetensors")
    assert call(folder, f"{words} --test").returncode == 0
    assert set(figures(folder)["MTT: no part"]["seeds"]) == {"val", "test"}
    assert {label: one["seeds"]["val"] for label, one in figures(folder).items()} == {
        label: one["seeds"]["val"] for label, one in found.items()
    }
    rows = len(list(usefulness.correlations(ablate._points([outcome(one) for one in found.values()]))))
    assert (folder / f"data/ablate/{RUN}.md").read_text().count("\n| ") == (1 + 1 + 14) + (1 + 1 + 4) + (1 + 1 + rows)
    assert (folder / f"data/ablate/{RUN}.png").read_bytes().startswith(b"\x89PNG")
    last = raw["runs"][RUN]["distill"]["max_start_epoch"] - 1 + raw["distill"]["ast"]["expert_epochs"]
    expected = []
    for path in folder.glob("data/ablate/*/data/experts/*/curves.csv"):
        rows = [row for row in files.read_csv(path, "") if int(row["epoch"]) <= last]
        ends = [row for row in rows if int(row["epoch"]) == last]
        steps = {key: mean(float(row[key]) for row in rows) for key in ("parameter_step", "common_logit_step")}
        expected.append(steps | {"accuracy": mean(float(row["val_accuracy"]) for row in ends)})
    measured = [experts for one in found.values() for experts in one["experts"]]
    assert all(any(one == pytest.approx(other, abs=1e-6) for other in expected) for one in measured)
    assert all(any(one == pytest.approx(other, abs=1e-6) for one in measured) for other in expected)
