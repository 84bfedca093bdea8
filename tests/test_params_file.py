"""Reading params.yaml: numbers as DVC reads them, and a sentence, never a traceback, for whatever is wrong."""

from __future__ import annotations

import copy
import random
from pathlib import Path
from typing import Any

import pytest

from src.ground.errors import ParamsError, UserError
from src.settings.params import Params, load, parse

TEXT = """
seed: 0
prepare: {digits: {source: digits}}
networks: {D2: {depth: 2, width: 8}}
experts: {smooth: {dataset: digits, network: D2, count: 2, epochs: 5, lr: 1e-3, weight_decay: 1.0e-3}}
distill: {ast: {initialisation: noise, iterations: 1, lr_lr: 1E-5}}
evaluate: {mtt: {}}
runs:
  one: {dataset: digits, network: D2, experts: smooth, ipc: all, distill: {method: ast, iterations: 0}, evaluate: mtt}
"""


def test_loading_reads_yaml_1_2_numbers(tmp_path: Path) -> None:
    file = tmp_path / "params.yaml"
    file.write_text(TEXT)
    params = load(file)
    experts = params.experts["smooth"]
    assert (experts.lr, experts.weight_decay, params.distillations["one"].lr_lr) == (1e-3, 1e-3, 1e-5)
    assert params.runs["one"].ipc == "all"


def test_a_missing_file_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"params\.yaml.*top folder"):
        load()
    with pytest.raises(UserError, match="can't be read"):
        load(tmp_path)
    (tmp_path / "params.yaml").write_bytes(b"seed: \xff\xfe")
    with pytest.raises(UserError, match="can't be read"):
        load()


@pytest.mark.parametrize(
    "text",
    ["a: [", "a: 1\na: 2", "a: *b", "\t- a", "a: !foo 1", "--- 1\n--- 2", "a: 2024-02-30", "seed: !!int x"],
)
def test_broken_yaml_is_a_sentence(text: str, tmp_path: Path) -> None:
    (tmp_path / "broken.yaml").write_text(text)
    with pytest.raises(ParamsError, match=r"broken\.yaml has 1 problem"):
        load(tmp_path / "broken.yaml")


@pytest.mark.parametrize("text", ["", "# nothing\n", "- 1\n", "text"])
def test_yaml_that_is_no_mapping(text: str, tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text(text)
    with pytest.raises(ParamsError, match="top level"):
        load(tmp_path / "params.yaml")


def places(raw: Any) -> list[tuple[Any, Any]]:
    """(container, key) of every value, inner nodes too."""
    items = list(raw.items() if isinstance(raw, dict) else enumerate(raw) if isinstance(raw, list) else ())
    return [(raw, key) for key, _ in items] + [place for _, value in items for place in places(value)]


def test_random_damage_is_always_params_or_params_error(valid_params: dict[str, Any]) -> None:
    dice = random.Random(0)
    valid, refused = 0, 0
    for _ in range(300):
        raw = copy.deepcopy(valid_params)
        for _ in range(dice.choice([1, 1, 2, 5])):
            container, key = dice.choice(places(raw))
            container[key] = copy.deepcopy(dice.choice([None, -1, "x", [], {}, 1e400, True]))
        try:
            valid += isinstance(parse(raw), Params)
        except ParamsError as error:
            refused += 1
            assert error.problems
    assert valid + refused == 300
    assert refused > 200
