"""Additions to params.yaml: new lines and nothing else, or the file as it was and a sentence."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from src.editing import params_edit
from src.ground.errors import ParamsError, UserError
from src.settings.params import load
from tests.imports import ROOT

RUN = {
    "dataset": "digits",
    "network": "N",
    "experts": "E",
    "ipc": 2,
    "distill": {"method": "mtt", "iterations": 3, "lr_img": 2.0},
    "evaluate": "mtt",
}
ADDITIONS: dict[str, dict[str, Any]] = {
    "prepare": {"own": {"source": "a folder/of images", "whitening": "zca", "size": 64, "skip_broken": True, "sha256": None}},
    "networks": {"N": {"depth": 1, "width": 8}},
    "experts": {
        "E": {"dataset": "digits", "network": "N", "count": 1, "epochs": 3, "lr": 5e-4, "augmentation": ("crop", "scale")}
    },
    "distill": {"steep": {"lr_img": 1e20, "lr_lr": 2.5e-7}},
    "runs": {"new": RUN},
}


@pytest.fixture
def params(tmp_path: Path) -> Path:
    shutil.copy(ROOT / "params.yaml", tmp_path)
    return tmp_path / "params.yaml"


def written(path: Path, text: str) -> Path:
    path.write_bytes(text.encode())
    return path


def document(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = YAML(typ="safe").load(path.read_text(encoding="utf-8"))
    return found


def test_every_line_of_the_real_file_stays(params: Path) -> None:
    before = params.read_bytes().splitlines(keepends=True)
    added = params_edit.add(ADDITIONS, params)
    assert added == ["prepare.own", "networks.N", "experts.E", "distill.steep", "runs.new"]
    after = params.read_bytes().splitlines(keepends=True)
    place, new = 0, []
    for line in after:
        if place < len(before) and line == before[place]:
            place += 1
        else:
            new.append(line)
    assert place == len(before)
    assert len(new) == sum(1 + len(entry) for section in ADDITIONS.values() for entry in section.values())


def test_additions_stand_at_the_end_of_their_section_and_read_back(params: Path) -> None:
    before = document(params)
    params_edit.add(ADDITIONS, params)
    after = document(params)
    for section, entries in ADDITIONS.items():
        assert list(after[section]) == [*before[section], *entries]
    assert after["experts"]["E"]["augmentation"] == ["crop", "scale"]
    assert after["runs"]["new"] == RUN
    assert load(params).distillations["new"].lr_img == 2.0
    text = params.read_text(encoding="utf-8")
    assert "    lr: 5.0e-4\n    augmentation: [crop, scale]\n" in text
    assert "    lr_img: 1.0e+20\n    lr_lr: 2.5e-7\n" in text
    assert "    distill: {method: mtt, iterations: 3, lr_img: 2.0}\n" in text
    assert "    source: a folder/of images\n    whitening: zca\n    size: 64\n    skip_broken: true\n    sha256: null\n" in text


@pytest.mark.parametrize(
    "value", ["true", "null", "1", "1.5", "0x1f", "a: b", "a #b", "it's", '"', "- a", "a\nb", "é ü", " ", "~"]
)
def test_text_reads_back_as_the_same_text(value: str, params: Path) -> None:
    params_edit.add({"prepare": {"own": {"source": value}}}, params)
    assert document(params)["prepare"]["own"]["source"] == value


@pytest.mark.parametrize("value", [1e-5, 1e-3, 0.0123, 1.0, 100.0, 123456.75, 1e16, 3.2e-17])
def test_reals_have_a_dot_and_all_their_digits(value: float, params: Path) -> None:
    params_edit.add({"distill": {"m": {"lr_img": value}}}, params)
    assert document(params)["distill"]["m"]["lr_img"] == value
    assert "." in params.read_text(encoding="utf-8").split("lr_img: ")[1].split()[0]


LAYOUT = """\
# top
prepare:
    digits:     # four spaces
        source:   >-
            digits
        # val_fraction: 0.5
    # HERE own

    # another one
networks: {D2: {depth: 2, width: 8}}
experts:
  smooth: { dataset: digits, network: D2,
    count: 2, epochs: 5, lr: &lr 1e-3 }  # two lines
  # HERE E

# methods
distill:
  ast:
    initialisation: noise
    iterations: 1
    augmentation: &kinds
    - crop
    - "scale"   # quoted
  # HERE m
# protocols
evaluate:
  mtt:
    augmentation: *kinds
  # HERE long
seed: 0
runs:
  one: {dataset: digits, network: D2, experts: smooth, ipc: all, distill: {method: ast, iterations: 0}, evaluate: mtt}
  # HERE two"""
NEW: dict[str, dict[str, Any]] = {
    "prepare": {"own": {"source": "x"}},
    "experts": {"E": {**ADDITIONS["experts"]["E"], "network": "D2"}},
    "distill": {"m": {"syn_steps": 5}},
    "evaluate": {"long": {"epochs": 9}},
    "runs": {"two": {**RUN, "network": "D2", "distill": {"method": "ast", "iterations": 0}}},
}


def without_marks(text: str) -> str:
    return "".join(line for line in text.splitlines(keepends=True) if "# HERE" not in line)


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_other_layouts_stay_as_they_are(newline: str, tmp_path: Path) -> None:
    path = written(tmp_path / "params.yaml", without_marks(LAYOUT).rstrip("\n").replace("\n", newline))
    params_edit.add(NEW, path)
    expected = LAYOUT + "\n"
    for entries in NEW.values():
        for name in entries:
            lines = params_edit.text_of({"x": entries}).removeprefix("x:\n")
            if name == "own":  # its section's names stand further in
                lines = "".join(f"  {line}" for line in lines.splitlines(keepends=True))
            mark = next(line for line in LAYOUT.splitlines() if line.endswith(f"# HERE {name}"))
            expected = expected.replace(f"{mark}\n", lines)
    assert path.read_bytes().decode() == expected.replace("\n", newline)


def test_sections_in_braces_are_refused(tmp_path: Path) -> None:
    path = written(tmp_path / "params.yaml", without_marks(LAYOUT))
    with pytest.raises(UserError, match="has networks in braces, to which no line can be added"):
        params_edit.add({"networks": {"N": {"depth": 1, "width": 8}}}, path)
    assert path.read_text(encoding="utf-8") == without_marks(LAYOUT)


def test_equal_settings_are_left_alone(params: Path) -> None:
    before = params.read_bytes()
    same = {
        "networks": {"ConvNetD2W32": {"depth": 2, "width": 32}},  # the rest are defaults
        "distill": {"real": {"iterations": 0, "initialisation": "random", "augmentation": []}},
        "prepare": {"digits": {"source": "digits"}},
    }
    assert params_edit.add({**same, "runs": {}}, params) == []
    assert params.read_bytes() == before


@pytest.mark.parametrize(
    ("section", "entry", "sentence"),
    [
        (
            "networks",
            {"ConvNetD2W32": {"depth": 2, "width": 64}},
            r"networks.ConvNetD2W32 \(width is 32, would be 64\): ",
        ),
        ("distill", {"ast": {"syn_steps": 20}}, r"distill.ast \(expert_epochs is 3, would be 2; "),
        ("runs", {"digits-whole": {**RUN, "network": "ConvNetD2W32", "experts": "digits-plain"}}, r"digits-whole \(.*distill"),
    ],
)
def test_other_settings_of_a_known_name_are_refused(section: str, entry: dict[str, Any], sentence: str, params: Path) -> None:
    before = params.read_bytes()
    with pytest.raises(UserError, match=sentence):
        params_edit.add({section: entry, "evaluate": {"fresh": {}}}, params)
    assert params.read_bytes() == before


def test_the_file_is_only_replaced_by_a_valid_one(params: Path) -> None:
    before = params.read_bytes()
    with pytest.raises(ParamsError, match=r"runs\.new\.network: 'N' is not in the section networks"):
        params_edit.add({"runs": {"new": RUN}}, params)
    with pytest.raises(ParamsError, match=r"prepare\.own\.size: input should be greater than or equal to 1"):
        params_edit.add({"prepare": {"own": {"source": "x", "size": 0}}}, params)
    with pytest.raises(ParamsError, match="sizes: unknown key"):
        params_edit.add({"prepare": {"digits": {"source": "digits", "sizes": 3}}}, params)
    assert params.read_bytes() == before
    assert list(params.parent.iterdir()) == [params]


def test_a_value_that_another_place_shares_is_not_changed(tmp_path: Path) -> None:
    text = without_marks(LAYOUT).replace("    iterations: 1\n", "    iterations: 1\n    lr_lr: *lr\n")
    path = written(tmp_path / "params.yaml", text)
    with pytest.raises(UserError, match="laid out so that nothing can be added"):
        params_edit.set_value(("distill", "ast", "lr_lr"), 0.5, path)
    assert path.read_text(encoding="utf-8") == text


def test_one_value_is_changed_in_place_or_added(params: Path) -> None:
    before = params.read_text(encoding="utf-8")
    params_edit.set_value(("experts", "digits-plain", "lr"), 0.1, params)
    assert params.read_text(encoding="utf-8") == before.replace("    lr: 0.05\n", "    lr: 0.1\n", 1)
    params_edit.set_value(("experts", "digits-plain", "lr"), 0.05, params)
    params_edit.set_value(("prepare", "digits", "sha256"), 64 * "b", params)
    line = "    test_fraction: 0.2\n"
    assert params.read_text(encoding="utf-8") == before.replace(line, f"{line}    sha256: {64 * 'b'}\n", 1)
    with pytest.raises(ParamsError, match=r"experts\.digits-plain\.lr"):
        params_edit.set_value(("experts", "digits-plain", "lr"), -1.0, params)


def test_a_link_stays_one(params: Path, tmp_path: Path) -> None:
    link = tmp_path / "link.yaml"
    link.symlink_to(params)
    params_edit.set_value(("experts", "digits-plain", "lr"), 0.1, link)
    assert link.is_symlink() and "    lr: 0.1\n" in params.read_text(encoding="utf-8")
