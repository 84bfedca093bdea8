"""Scores beyond accuracy: closed forms, deviations against draws, and a tiny pipeline whose report has the figures by hand."""

from __future__ import annotations

import csv
import math
import statistics
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest

from src.maths import scores_beyond as scores
from src.maths.scores_beyond import Estimate
from src.pages import standings
from src.settings import resolved
from src.settings.params import Params, parse
from src.stages import beyond, report, results, run_log
from src.stages.beyond import Evaluated
from src.stages.records import scores_record
from src.store import files
from src.studies import compare
from tests.small_run import STORE, made

E = math.e


def exact(*means: float) -> list[Estimate]:
    return [Estimate(mean, 0.0) for mean in means]


def test_differences_are_those_of_the_paper() -> None:
    full, own, random = Estimate(0.9, 0.03), Estimate(0.6, 0.04), Estimate(0.25, 0.12)
    assert scores.hard_label_recovery(full, own).mean == pytest.approx(0.3, abs=1e-15)
    assert scores.hard_label_recovery(full, own).std == pytest.approx(0.05)
    assert scores.improvement_over_random(own, random).mean == pytest.approx(0.35, abs=1e-15)
    assert scores.improvement_over_random(own, random).std == pytest.approx(math.sqrt(0.016))


@pytest.mark.parametrize(("value", "squashed"), [(-1, 0), (0, (1 - 1 / E) / (E - 1 / E)), (1, 1)])
def test_the_scale_has_its_ends_and_its_zero(value: float, squashed: float) -> None:
    assert scores.squashed(Estimate(value, 0)).mean == pytest.approx(squashed, abs=1e-15)


def test_lrs_and_ars_in_closed_form() -> None:
    (full, own, random, hard), (bare, bare_random) = exact(0.9, 0.6, 0.2, 0.5), exact(0.4, 0.3)
    by_hand = (math.exp(0.5 * 0.4 - 0.5 * 0.3) - math.exp(-1)) / (E - math.exp(-1))
    assert scores.label_robust(full, own, random).mean == pytest.approx(by_hand, abs=1e-14)
    soft = (math.exp(0.5 * 0.4 - 0.5 * 0.4) - math.exp(-1)) / (E - math.exp(-1))
    assert scores.label_robust(full, own, random, hard).mean == pytest.approx(soft, abs=1e-14)
    robust = (math.exp(0.5 * 0.4 + 0.5 * 0.1) - math.exp(-1)) / (E - math.exp(-1))
    assert scores.augmentation_robust((own, random), (bare, bare_random)).mean == pytest.approx(robust, abs=1e-14)


def test_scores_are_monotone_and_bounded() -> None:
    draws = np.random.default_rng(0)
    for full, own, random, better in draws.uniform(0, 1, (200, 4)):
        low, high = sorted((own, better))
        worse, best = (scores.label_robust(*exact(full, one, random)).mean for one in (low, high))
        assert 0 <= worse <= best <= 1
        assert scores.label_robust(*exact(min(full + 0.1, 1.1), low, random)).mean < worse
        pairs = [(Estimate(one, 0), Estimate(random, 0)) for one in (low, high)]
        assert 0 <= scores.augmentation_robust(pairs[0], pairs[0]).mean <= scores.augmentation_robust(*pairs).mean <= 1
        assert -1 <= scores.hard_label_recovery(*exact(full, own)).mean <= 1


@pytest.mark.parametrize("soft", [False, True])
def test_deviations_are_those_of_draws(soft: bool) -> None:
    """Students of one set count once where HLR and IOR share them."""
    draws, n = np.random.default_rng(1), 400_000
    known = [Estimate(0.9, 0.004), Estimate(0.7, 0.01), Estimate(0.3, 0.02), Estimate(0.6, 0.015)]
    full, own, random, hard = (draws.normal(one.mean, one.std, n) for one in known)
    a = 0.5 * (own - random) - 0.5 * (full - (hard if soft else own))
    found = scores.label_robust(*known[: 3 + soft])
    assert found.std == pytest.approx(np.std((np.exp(a) - 1 / E) / (E - 1 / E)), rel=0.01)
    b = 0.5 * (own - random) + 0.5 * (full - hard)
    found = scores.augmentation_robust((known[1], known[2]), (known[0], known[3]))
    assert found.std == pytest.approx(np.std((np.exp(b) - 1 / E) / (E - 1 / E)), rel=0.01)


# -- a tiny pipeline

KINDS = ["crop", "scale"]


def raw_params() -> dict[str, Any]:
    """Images and random ones by two protocols that differ in augmentation, and all real images."""
    run = {"dataset": "digits", "network": "D2", "experts": "short", "ipc": 1}
    real = run | {"experts": None, "distill": {"method": "real"}}
    own = run | {"distill": {"method": "mtt"}}
    protocol = {"students": 3, "epochs": 8}
    return {
        "seed": 0,
        "runtime": {"device": "cpu", "threads": 1, "workers": 1},
        "prepare": {"digits": {"source": "digits"}},
        "networks": {"D2": {"depth": 2, "width": 4}},
        "experts": {"short": {"dataset": "digits", "network": "D2", "count": 1, "epochs": 2, "lr": 0.05}},
        "distill": {
            "mtt": {
                "initialisation": "random",
                "iterations": 3,
                "syn_steps": 2,
                "expert_epochs": 1,
                "max_start_epoch": 1,
                "snapshot_every": 2,
            },
            "real": {"initialisation": "random", "iterations": 0, "lr_init": 0.02},
        },
        "evaluate": {
            "with": {**protocol, "augmentation": KINDS},
            "without": protocol,
            "whole": {"students": 2, "epochs": 1, "batch_size": 64},
        },
        "report": {"title": "Scores"},
        "runs": {
            "own": own | {"evaluate": "with"},
            "own-plain": own | {"evaluate": "without"},
            "random": real | {"evaluate": "with"},
            "random-plain": real | {"evaluate": "without"},
            "all": real | {"ipc": "all", "evaluate": "whole"},
        },
    }


@pytest.fixture(scope="module")
def params(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Params]:
    with made(tmp_path_factory.mktemp("scores"), raw_params()) as found:
        yield found


@pytest.fixture
def untracked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(beyond, "track", lambda *about: None)


def of_students(name: str) -> tuple[float, float]:
    rows = list(csv.DictReader(STORE.students_file(name).open()))
    found = [float(row["test_accuracy"]) for row in rows]
    return statistics.mean(found), statistics.stdev(found)


def by_hand(name: str) -> list[str]:
    """HLR, IOR, LRS and ARS, and their deviations, in words."""
    (full, s_full), (own, s_own) = of_students("all"), of_students(name)
    random, s_random = of_students(name.replace("own", "random"))
    (a, s_a), (r, s_r), (b, s_b), (q, s_q) = map(of_students, ("own", "random", "own-plain", "random-plain"))
    span, lrs, ars = E - 1 / E, own - random / 2 - full / 2, (a - r) / 2 + (b - q) / 2
    pairs = [
        (full - own, math.hypot(s_full, s_own)),
        (own - random, math.hypot(s_own, s_random)),
        ((math.exp(lrs) - 1 / E) / span, math.exp(lrs) * math.hypot(s_own, s_random / 2, s_full / 2) / span),
        ((math.exp(ars) - 1 / E) / span, math.exp(ars) * math.hypot(s_a, s_r, s_b, s_q) / 2 / span),
    ]
    signs = ("+", "+", "", "")
    cells = [f"{100 * mean:{sign}.1f} ± {100 * std:.1f}" for (mean, std), sign in zip(pairs, signs, strict=True)]
    return [cell.replace("-", "\N{MINUS SIGN}") for cell in cells]


def evaluated(params: Params) -> list[Evaluated]:
    runs = resolved.pipeline(params).runs
    return [Evaluated(run, results.result_of(STORE, run)) for run in runs.values()]


@pytest.mark.usefixtures("untracked")
def test_the_report_has_the_figures_by_hand(params: Params) -> None:
    report.run(STORE, resolved.pipeline(params))
    html, markdown = (STORE.report_file(suffix).read_text(encoding="utf-8") for suffix in ("html", "md"))
    table = markdown.partition("Scores beyond accuracy")[2]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines() if line.startswith("|")]
    assert rows[0] == ["run", "HLR, points", "IOR, points", "LRS, %", "ARS, %", "set beside"]
    assert [row[:-1] for row in rows[2:]] == [[name, *by_hand(name)] for name in ("own", "own-plain")]
    assert rows[2][-1] == "all, random, own-plain, random-plain"
    assert all(cell in html for name in ("own", "own-plain") for cell in by_hand(name))
    assert "not shown" not in markdown
    for name in standings.SAYS:
        assert f"- {name}, {standings.SAYS[name]}." in markdown
    report.run(STORE, resolved.pipeline(params))
    assert STORE.report_file("html").read_text(encoding="utf-8") == html


def test_what_is_not_there_is_not_shown_and_said(params: Params) -> None:
    pool = evaluated(params)
    own = [one for one in pool if one.run.name == "own"]

    def without(*names: str) -> tuple[set[str], str]:
        found = beyond.standings(own, [one for one in pool if one.run.name not in names])
        return set(found.columns), " ".join(found.lacking)

    assert without("all") == ({"IOR", "ARS"}, f"HLR and LRS of own are not shown: this takes {beyond.NO_WHOLE}.")
    shown, said = without("random")
    assert shown == {"HLR"}
    assert f"IOR and LRS of own are not shown: this takes {beyond.NO_RANDOM}." in said
    assert f"ARS of own is not shown: this takes {beyond.NO_OTHER}." in said
    for missing in ("own-plain", "random-plain"):
        assert without(missing)[0] == {"HLR", "IOR", "LRS"}
    assert without("all", "random", "random-plain")[0] == set()


def test_other_settings_are_not_set_beside(params: Params) -> None:
    """Neither another network, nor another number of images, protocol or epoch that is scored."""
    pool = evaluated(params)
    own = next(one for one in pool if one.run.name == "own")

    def beside(**changes: Any) -> tuple[str, ...]:
        changed = replace(own, run=replace(own.run, **changes))
        row = beyond.standings([changed], pool).rows.get("own")
        return row.beside if row else ()

    assert beside() == ("all", "random", "own-plain", "random-plain")
    assert beside(ipc=2) == ("all",)
    assert beside(spec=own.run.spec.model_copy(update={"width": 8})) == ()
    assert beside(evaluation=own.run.evaluation.model_copy(update={"epochs": 9})) == ("all",)
    assert beside(evaluation=own.run.evaluation.model_copy(update={"score": "best_test"})) == ()


def test_a_soft_set_takes_the_same_images_with_hard_labels(params: Params) -> None:
    """Its HLR is theirs; with random images, whose labels are hard, it is not compared."""
    pool = evaluated(params)
    hard = next(one for one in pool if one.run.name == "own")
    soft = replace(hard, run=replace(hard.run, name="soft"), result=replace(hard.result, soft=True, test=Estimate(0.95, 0.01)))
    found = beyond.standings([soft], [*pool, soft])
    (full, s_full), (own, s_own) = of_students("all"), of_students("own")
    assert found.rows["soft"].scores["HLR"] == Estimate(pytest.approx(full - own), pytest.approx(math.hypot(s_full, s_own)))
    assert found.columns == ("HLR",)
    assert set(found.rows["soft"].beside) == {"all", "own"}
    assert f"ARS and IOR and LRS of soft are not shown: this takes {beyond.NO_SOFT_RANDOM}." in found.lacking
    alone = beyond.standings([soft], [one for one in pool if not one.run.name.startswith("own")])
    assert not alone.columns
    assert f"HLR and LRS of soft are not shown: this takes {beyond.NO_HARD}." in alone.lacking


def test_of_several_random_runs_the_validation_split_chooses(params: Params) -> None:
    pool = evaluated(params)
    own, random = (next(one for one in pool if one.run.name == name) for name in ("own", "random"))
    luckier = replace(random.result, run="luckier", test=Estimate(1.0, 0.0), val=Estimate(0.0, 0.0))
    pool.append(Evaluated(replace(random.run, name="luckier"), luckier))
    assert "luckier" not in beyond.standings([own], pool).rows["own"].beside


def test_compare_has_them_and_leaves_out_what_is_not_evaluated(params: Params) -> None:
    pipeline = resolved.pipeline(params)
    pool = beyond.available(STORE, pipeline.runs)
    found = [compare._compared(STORE, pipeline.runs[name], pool) for name in ("own", "random")]
    rows = {row[0]: row[1:] for row in compare.rows(found)}
    figures = dict(zip(("HLR, points", "IOR, points", "LRS, %", "ARS, %"), by_hand("own"), strict=True))
    assert {name: rows[name] for name in figures} == {name: (figure, "-") for name, figure in figures.items()}
    kept = STORE.metrics_file("all").read_bytes()
    STORE.metrics_file("all").unlink()
    try:
        assert "all" not in {one.run.name for one in beyond.available(STORE, pipeline.runs)}
    finally:
        STORE.metrics_file("all").write_bytes(kept)


def client() -> mlflow.MlflowClient:
    return mlflow.MlflowClient(f"sqlite:///{Path.cwd() / 'mlflow.db'}")


def named(name: str) -> list[Any]:
    """The rows of a run, the newest first."""
    return [run for run in client().search_runs(["1"]) if run.info.run_name == name]


def rows_of_mlflow() -> dict[str, Any]:
    found = client().search_runs(["1"])
    assert len({run.info.run_name for run in found}) == len(found)
    return {run.info.run_name: run for run in found}


def points(name: str, metric: str) -> list[float]:
    history = client().get_metric_history(rows_of_mlflow()[name].info.run_id, metric)
    return [point.value for point in sorted(history, key=lambda point: point.step)]


def test_mlflow_has_them_in_the_runs_own_rows(params: Params) -> None:
    pipeline = resolved.pipeline(params)
    before = set(rows_of_mlflow())
    for _ in range(2):
        report.run(STORE, pipeline)
    rows = rows_of_mlflow()
    assert set(rows) == before
    (full, _), (own, _) = of_students("all"), of_students("own")
    assert rows["own"].data.metrics["scores/hlr"] == pytest.approx(full - own)
    assert {f"scores/{name}{end}" for name in ("hlr", "ior", "lrs", "ars") for end in ("", "_std")} <= set(
        rows["own"].data.metrics
    )
    assert "test_accuracy_mean" in rows["own"].data.metrics
    assert not [name for name in rows["random"].data.metrics if name.startswith("scores/")]
    assert points("own", "scores/hlr") == [rows["own"].data.metrics["scores/hlr"]]


def test_a_score_that_another_run_changed_is_the_last_point(params: Params) -> None:
    pipeline, path = resolved.pipeline(params), STORE.metrics_file("all")
    report.run(STORE, pipeline)
    before, kept = points("own", "scores/hlr"), path.read_bytes()
    metrics = files.read_json(path, "")
    try:
        files.write_json(path, metrics | {"test_accuracy_mean": metrics["test_accuracy_mean"] + 0.01})
        STORE.save_scores("all", scores_record(STORE, pipeline.runs["all"]))
        report.run(STORE, pipeline)
        assert points("own", "scores/hlr") == [*before, pytest.approx(before[-1] + 0.01)]
    finally:
        path.write_bytes(kept)
        STORE.save_scores("all", scores_record(STORE, pipeline.runs["all"]))


def test_other_code_with_the_same_scores_begins_no_row(params: Params, monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline = resolved.pipeline(params)
    report.run(STORE, pipeline)
    before = {name: run.info.run_id for name, run in rows_of_mlflow().items()}
    monkeypatch.setattr(run_log, "fingerprint", lambda settings: "of other code")
    report.run(STORE, pipeline)
    assert {name: run.info.run_id for name, run in rows_of_mlflow().items()} == before


def test_other_scores_of_the_same_set_are_not_put_into_its_row(params: Params) -> None:
    """As other code may find them, by the same protocol."""
    pipeline, path = resolved.pipeline(params), STORE.metrics_file("own-plain")
    report.run(STORE, pipeline)
    (row,), kept, metrics = named("own-plain"), path.read_bytes(), files.read_json(path, "")
    try:
        files.write_json(path, metrics | {"test_accuracy_mean": metrics["test_accuracy_mean"] + 0.01})
        STORE.save_scores("own-plain", scores_record(STORE, pipeline.runs["own-plain"]))
        report.run(STORE, pipeline)
        begun, before = named("own-plain")
        assert before.info.run_id == row.info.run_id and before.data.metrics == row.data.metrics
        assert begun.data.metrics["scores/hlr"] == pytest.approx(row.data.metrics["scores/hlr"] - 0.01)
        client().delete_run(begun.info.run_id)
    finally:
        path.write_bytes(kept)
        STORE.save_scores("own-plain", scores_record(STORE, pipeline.runs["own-plain"]))


def test_a_store_that_is_gone_does_not_fail_the_report(
    params: Params, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:////nowhere/at/all.db")
    STORE.report_file("html").unlink(missing_ok=True)
    report.run(STORE, resolved.pipeline(params))
    assert STORE.report_file("html").exists()
    assert capsys.readouterr().err.count("Warning") == 1


@pytest.mark.usefixtures("untracked")
def test_a_pipeline_without_references_says_what_it_lacks(params: Params) -> None:
    raw = raw_params()
    raw["runs"] = {"own": raw["runs"]["own"]}
    content = report.page_of(STORE, resolved.pipeline(parse(raw)).runs, ("D2",), "Alone")
    assert content.standings.rows == {}
    assert len(content.standings.lacking) == 3
