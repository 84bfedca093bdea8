"""compare: its numbers against scipy's, its table, its page, its refusals, on two runs of the pipeline, tiny."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import ttest_ind, ttest_rel

from src.maths import significance
from src.maths.significance import Difference
from tests import studying
from tests.studying import call

RUNS = "digits-ipc1-ast digits-ipc1-random"


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two evaluated runs."""
    folder = studying.folder_of(tmp_path_factory.mktemp("compare"), studying.raw_params())
    for stage in ("experts", "distill", "evaluate"):
        done = call(folder, stage)
        assert done.returncode == 0, done.stderr
    return folder


def test_welch_is_scipys() -> None:
    draws = np.random.default_rng(0)
    for first, second in ((5, 5), (3, 8), (2, 2)):
        a, b = draws.normal(0.9, 0.01, first), draws.normal(0.92, 0.03, second)
        found = significance.welch(a.tolist(), b.tolist())
        assert found.p == pytest.approx(ttest_ind(a, b, equal_var=False).pvalue)
        assert found.mean == pytest.approx(b.mean() - a.mean())


def test_groups_without_scatter_or_with_one_member() -> None:
    assert significance.welch([0.5, 0.5], [0.5, 0.5]).p == 1
    assert significance.welch([0.5, 0.5], [0.6, 0.6]).p == 1
    assert significance.welch([0.5], [0.6, 0.7]).p == 1
    assert significance.paired([0.5, 0.75], [0.75, 1.0]) == Difference(0.25, 1.0)
    assert significance.paired([0.5], [0.6]).p == 1


def test_paired_is_scipys() -> None:
    draws = np.random.default_rng(1)
    for count in (2, 3, 10):
        a = draws.normal(0.9, 0.03, count)
        b = a + draws.normal(0.01, 0.01, count)
        found = significance.paired(a.tolist(), b.tolist())
        assert found.p == pytest.approx(ttest_rel(b, a).pvalue)
        assert found.mean == pytest.approx(b.mean() - a.mean())


def test_words_say_which_is_better_and_whether_it_may_be_noise() -> None:
    clear = significance.welch([0.90, 0.91, 0.92], [0.95, 0.96, 0.97])
    assert significance.words(clear, "a", "b").startswith("b is 5.0 points above a, beyond noise (p = 0.0")
    unclear = significance.welch([0.90, 0.95], [0.91, 0.96])
    assert "differ by 1.0 points, which may be noise (p = 0." in significance.words(unclear, "a", "b")


@pytest.mark.slow
def test_the_table_and_the_verdict(repository: Path) -> None:
    done = call(repository, f"compare {RUNS}")
    assert done.returncode == 0, done.stderr
    assert "distill.initialisation" in done.stdout
    assert "representative" in done.stdout
    assert "distill.syn_lr_min" not in done.stdout  # equal
    found = []
    for name in RUNS.split():
        rows = list(csv.DictReader((repository / "data/evaluate" / name / "students.csv").open()))
        found.append([float(row["test_accuracy"]) for row in rows])
    p = ttest_ind(*found, equal_var=False).pvalue
    verdict = next(line for line in done.stdout.splitlines() if line.startswith("test: "))
    assert f"p = {p:.2g}" in verdict
    mean, std = 100 * np.mean(found[0]), 100 * np.std(found[0], ddof=1)
    assert f"{mean:.1f} ± {std:.1f}" in done.stdout


@pytest.mark.slow
def test_the_page_shows_these_runs(repository: Path) -> None:
    done = call(repository, f"compare {RUNS} --html versus.html")
    assert done.returncode == 0, done.stderr
    text = (repository / "versus.html").read_text(encoding="utf-8")
    assert "<h1>digits-ipc1-ast against digits-ipc1-random</h1>" in text
    assert 'id="contrast"' in text
    assert "Matching loss" in text
    assert text.count("data:image/png;base64") >= 2


@pytest.mark.slow
def test_refusals(repository: Path) -> None:
    assert "two different runs or more" in call(repository, "compare digits-ipc1-ast").stderr
    assert "no run is named 'x'" in call(repository, "compare digits-ipc1-ast x").stderr
    (repository / "data/evaluate/digits-ipc1-random/students.csv").unlink()
    assert "make it with `python -m src.cli evaluate" in call(repository, f"compare {RUNS}").stderr
