"""adopt, apart from the pipeline: nothing is marked before all samples are there, and a difference is told in words."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from src.ground.errors import InterruptedWorkError, UserError
from src.settings import params as reading
from src.settings import resolved
from src.settings.resolved import Pipeline
from src.studies import adopt, samples
from src.studies.adopt import Outdated
from src.studies.samples import Compared
from tests.small_run import STORE

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
    assert samples._all("x", {"a": old}, {"b": old}).difference == "holds a instead of b"
