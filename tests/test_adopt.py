"""adopt, apart from the pipeline: nothing is marked before all samples are there, and a difference is told in words."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch

from src.ground.errors import InterruptedWorkError, UserError
from src.loops import expert
from src.settings import params as reading
from src.settings import resolved
from src.settings.params import Params
from src.settings.resolved import Pipeline
from src.stages import prepare
from src.studies import adopt, samples
from src.studies.adopt import Outdated
from src.studies.samples import Compared
from tests import small_run
from tests.small_run import STORE, made

FOUND = [Outdated("experts", "smooth"), Outdated("distill", "one")]


@pytest.fixture
def marked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    """What DVC is told, and what is resolved."""
    calls: list[tuple[str, ...]] = []
    monkeypatch.setattr(adopt, "_outdated", lambda store, pipeline, asked: iter(FOUND))
    monkeypatch.setattr(adopt, "_dvc", lambda *words, **options: calls.append(words))
    monkeypatch.setattr(adopt.resolve, "run", lambda data, pipeline: calls.append(("resolve",)))
    return calls


@pytest.fixture
def pipeline(valid_params: dict[str, Any]) -> Pipeline:
    return resolved.pipeline(reading.parse(valid_params))


def test_a_stop_among_the_samples_marks_nothing(
    marked: list[tuple[str, ...]], pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    def sampled(store: Any, pipeline: Any, one: Outdated) -> Any:
        if one.stage == "distill":
            raise InterruptedWorkError
        return [Compared("a sample", None)]

    monkeypatch.setattr(adopt, "_samples", sampled)
    with pytest.raises(InterruptedWorkError):
        adopt.run(STORE, pipeline, [])
    assert marked == []


def test_what_differs_stays_out_of_date_beside_what_does_not(
    marked: list[tuple[str, ...]], pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        adopt, "_samples", lambda store, pipeline, one: [Compared("a", None), Compared("b", DIFFERS[one.stage])]
    )
    with pytest.raises(UserError, match="distill@one would come out otherwise, or may, and stay out of date: run `dvc repro`"):
        adopt.run(STORE, pipeline, [])
    assert marked == [("resolve",), ("commit", "--force", "resolve", "experts@smooth")]


def test_what_begins_with_a_set_that_differs_is_not_adopted(
    marked: list[tuple[str, ...]], pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = pipeline.runs["one"]
    begun = replace(pipeline, runs={"one": one, "two": replace(one, name="two", initial=one)})
    found = [*FOUND, Outdated("distill", "two")]
    monkeypatch.setattr(adopt, "_outdated", lambda store, pipeline, asked: iter(found))
    monkeypatch.setattr(adopt, "_samples", lambda store, given, one: [Compared("a", {"one": "by up to 1"}.get(one.name))])
    with pytest.raises(UserError, match="distill@one, distill@two would come out otherwise, or may"):
        adopt.run(STORE, begun, [])
    assert marked == [("resolve",), ("commit", "--force", "resolve", "experts@smooth")]


DIFFERS = {"experts": None, "distill": "by up to 1"}


def test_differences_in_words() -> None:
    old = torch.zeros(4)
    assert samples._equal("x", old.clone(), old) == Compared("x", None)
    assert samples._equal("x", torch.tensor([0.0, 0.5, 0.0, 0.0]), old).difference == "by up to 0.5 in 25% of the numbers"
    assert samples._equal("x", torch.zeros(3), old).difference == "shape (3,) instead of (4,)"
    assert samples._figure("x", 0.5, 0.5) == Compared("x", None)
    assert samples._figure("x", 0.51, 0.5).difference == "+1.00 points"
    row, told = {"iteration": 0, "expert": "1 2", "loss": 0.5}, {"iteration": "0", "expert": "1 2", "loss": "0.5"}
    assert samples._told("x", [row], [told, {"more": "rows"}]) == Compared("x", None)
    assert samples._told("x", [row | {"loss": 0.55}], [told]).difference == "by up to 0.1 of themselves"
    assert samples._told("x", [row | {"more": 0.0}], [told]).difference == (
        "columns iteration, expert, loss, more instead of iteration, expert, loss"
    )
    assert samples._all("x", {"a": old}, {"b": old}).difference == "holds a instead of b"


# -- samples of a small run


@pytest.fixture(scope="module")
def made_before(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Params]:
    with made(tmp_path_factory.mktemp("adopt"), small_run.params()) as found:
        yield found


def differing(found: Iterator[Compared]) -> dict[str, str]:
    return {one.what: one.difference for one in found if one.difference}


def test_statistics_are_compared_too(made_before: Params, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = resolved.data_set(made_before, "digits")
    found = list(samples.of_data_set(STORE, dataset))
    assert "statistics.json" in [one.what for one in found] and not differing(iter(found))
    right = prepare._statistics
    monkeypatch.setattr(prepare, "_statistics", lambda *given: replace(right(*given), source_std=(1.0,), skipped=("a.png",)))
    assert differing(samples.of_data_set(STORE, dataset)) == {"statistics.json": "in source_std, skipped"}


def test_experts_curves_are_compared_too(made_before: Params, monkeypatch: pytest.MonkeyPatch) -> None:
    buffer = resolved.buffer(made_before, "smooth")
    found = list(samples.of_buffer(STORE, buffer))
    assert [one.what for one in found] == ["expert 0 after its first epoch", "that epoch's figures"]
    assert not differing(iter(found))
    monkeypatch.setattr(expert.smoothness, "parameter_steps", lambda trajectory: torch.ones(len(trajectory) - 1))
    assert list(differing(samples.of_buffer(STORE, buffer))) == ["that epoch's figures"]


def test_a_run_that_nothing_changed_is_the_same(made_before: Params) -> None:
    run = resolved.run(made_before, "one")
    found = [*samples.of_synthetic(STORE, run), *samples.of_students(STORE, run)]
    assert "the first 3 iterations' figures" in [one.what for one in found] and not differing(iter(found))
