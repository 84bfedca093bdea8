"""Which images a seed changes: the splits that a source does not have are drawn with it, as a page of docs/ says."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from src.settings import resolved
from src.settings.params import Params, parse
from src.stages import prepare
from src.stages.records import prepared
from src.store.values import Split
from src.studies import variants
from src.studies.variants import Changes
from tests.imports import ROOT
from tests.small_run import STORE

SPLITS = ("train", "val", "test")


@pytest.fixture
def params(valid_params: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Params:
    """digits, and images that bring a test split along; the first pixel is an image's number."""
    monkeypatch.chdir(tmp_path)
    numbers = {"train": np.arange(40), "test": np.arange(100, 120)}
    images = {f"x_{split}": np.zeros((len(own), 8, 8, 1), np.uint8) for split, own in numbers.items()}
    for split, own in numbers.items():
        images[f"x_{split}"][:, 0, 0, 0] = own
    np.savez("own.npz", **images, **{f"y_{split}": own % 2 for split, own in numbers.items()})
    valid_params["prepare"]["own"] = {"source": "own.npz"}
    return parse(valid_params)


def splits(params: Params, dataset: str, seed: int) -> dict[str, Split]:
    prepare.run(STORE, resolved.data_set(replace(params, seed=seed), dataset))
    return {split: STORE.load_split(dataset, split) for split in SPLITS}


def same(one: dict[str, Split], other: dict[str, Split]) -> set[str]:
    return {split for split in SPLITS if torch.equal(one[split].images, other[split].images)}


def test_a_seed_draws_the_splits_that_a_source_does_not_have(params: Params) -> None:
    zero, again, one = (splits(params, "digits", seed) for seed in (0, 0, 1))
    assert same(zero, again) == set(SPLITS)
    assert same(zero, one) == set()
    mine = [splits(params, "own", seed) for seed in (0, 1)]
    assert same(*mine) == {"test"}
    assert sorted(mine[0]["test"].images[:, 0, 0, 0].tolist()) == list(range(100, 120))


def test_prepare_says_what_its_seed_draws(params: Params, capsys: pytest.CaptureFixture[str]) -> None:
    splits(params, "digits", 3)
    splits(params, "own", 3)
    digits, own = (line for line in capsys.readouterr().err.splitlines() if "classes of" in line)
    assert digits == "digits: 10 classes of 1x8x8 images: 1,077 train, 360 val, 360 test; val and test drawn by seed 3"
    assert own.endswith("8 val, 20 test; val drawn by seed 3")


def test_a_study_keeps_the_splits_under_all_its_seeds(params: Params) -> None:
    splits(params, "digits", 0)
    base = resolved.run(params, "one")
    variant = variants.build(base, params.tune, Changes(seed=1), variants.protocol_of(base, params.tune))
    assert variant.run.seed == 1
    prepared(STORE, variant.run.dataset, *SPLITS)  # accepts what was drawn with the root seed


def test_the_page_on_reproducibility_says_so() -> None:
    page = " ".join((ROOT / "docs/reproducibility.md").read_text(encoding="utf-8").split())
    assert (
        "With another `seed`, a source without a test split of its own (digits, a folder of class folders) has other test"
        in page
    )
