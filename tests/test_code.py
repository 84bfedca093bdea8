"""What code an artifact's bytes rest on: changes that can't matter change no digest, those that can change theirs alone."""

from __future__ import annotations

import ast
import shutil
import sys
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

import pytest

from src.settings import params as reading
from src.settings import resolved
from src.settings.networks import MLP, VGG11, ConvNet, Network
from src.stages import resolve
from src.store import code, files, provenance
from tests.imports import ROOT

STAGES = ("prepare", "experts", "distill", "evaluate")
SPECS: tuple[Network, ...] = (ConvNet(depth=2, width=8), MLP(family="MLP"))
# they only read, wait, start or speak
NOT_IN_BYTES = {"filelock", "joblib", "pydantic", "rich", "ruamel.yaml", "threadpoolctl"}


@pytest.fixture
def top(tmp_path: Path) -> Path:
    """A repository's code, to be changed."""
    shutil.copytree(ROOT / "src", tmp_path / "src", ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


def digests(top: Path) -> dict[str, str]:
    """By stage and family."""
    code.closure.cache_clear()
    found = {stage: code.digest(stage, root=top) for stage in ("prepare", "report")}
    return found | {f"{s} {spec.family}": code.digest(s, [spec], top) for s in STAGES[1:] for spec in SPECS}


def changed(top: Path, path: str, old: str, new: str) -> set[str]:
    """Whose digest another text changes."""
    before, file = digests(top), top / path
    text = file.read_text(encoding="utf-8") if file.exists() else ""
    assert old in text
    file.write_text(text.replace(old, new, 1) if old else text + new, encoding="utf-8")
    after = digests(top)
    return {name for name in before if before[name] != after[name]}


MATCHED = {f"{stage} {spec.family}" for stage in ("experts", "distill", "evaluate") for spec in SPECS}


@pytest.mark.parametrize(
    ("path", "old", "new", "expected"),
    [
        ("src/maths/matching.py", "", "\n# a remark\n", set()),
        ("src/maths/families/vgg16.py", "", "def layers(spec, channels, size, classes):\n    return []\n", set()),
        ("src/settings/networks.py", "", "\n\nclass VGG16(Architecture):\n    width: Positive = 64\n", set()),
        ("src/settings/distillation.py", "    iterations:", "    momentum_of_labels: float = 0.0\n    iterations:", set()),
        ("src/exchange/another.py", "", "x = 1\n", set()),
        ("src/cli/pipeline.py", "", "x = 1\n", set()),
        ("src/tracking/tracker.py", "", "x = 1\n", set()),
        ("src/maths/families/mlp.py", "", "x = 1\n", {name for name in MATCHED if name.endswith("MLP")}),
        ("src/maths/matching.py", "", "x = 1\n", {"distill ConvNet", "distill MLP"}),
        ("src/maths/protocol.py", "", "x = 1\n", {"evaluate ConvNet", "evaluate MLP"}),
        ("src/maths/smoothness.py", "", "x = 1\n", {"experts ConvNet", "experts MLP"}),
        ("src/maths/networks.py", "", "x = 1\n", {*MATCHED, "prepare", "report"}),
        (
            "src/settings/distillation.py",
            "return self.max_start",
            "return 2 * self.max_start",
            {"distill ConvNet", "distill MLP"},
        ),
        ("src/pages/report.html.j2", "", "<p>more</p>", {"report"}),
    ],
)
def test_a_change_matters_to_whose_bytes_rest_on_it(path: str, old: str, new: str, expected: set[str], top: Path) -> None:
    if not (top / path).parent.exists():
        (top / path).parent.mkdir()
    found = changed(top, path, old, new)
    assert found - {"report"} == expected - {"report"}
    assert expected <= found


def test_it_is_the_code_that_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also in a study's folder."""
    before = code.digest("distill", SPECS)
    monkeypatch.chdir(tmp_path)
    assert code.digest("distill", SPECS) == before
    assert code.ROOT == ROOT
    assert len({code.digest(stage) for stage in code.ENTRIES}) == len(code.ENTRIES)


@pytest.mark.parametrize("stage", STAGES)
def test_packages_are_those_that_the_results_import(stage: str) -> None:
    imported: set[str] = set()
    for module in code.closure(code.ENTRIES[stage]):
        for node in ast.walk(ast.parse((ROOT / module).read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                imported |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                imported.add(node.module.partition(".")[0])
    distributions = packages_distributions()
    used = {distributions[name][0].lower() for name in imported - {"src"} - sys.stdlib_module_names}
    assert used - NOT_IN_BYTES <= set(provenance.PACKAGES)


# -- resolve


def written(raw: dict[str, Any], folder: Path) -> dict[str, Any]:
    resolve.run(folder, resolved.pipeline(reading.parse(raw)))
    place = folder / resolve.FOLDER
    return {path.relative_to(place).as_posix(): files.read_json(path, "") for path in sorted(place.rglob("*.json"))}


def touched(raw: dict[str, Any], section: str, name: str, field: str, value: Any, folder: Path) -> set[str]:
    before = written(raw, folder)
    raw[section][name] = {**raw[section][name], field: value} if field else value
    after = written(raw, folder)
    return {place for place in {*before, *after} if before.get(place) != after.get(place)}


def test_there_is_a_file_for_each_stage_and_name(valid_params: dict[str, Any], tmp_path: Path) -> None:
    found = written(valid_params, tmp_path)
    runs = [f"{stage}/{run}.json" for stage in ("distill", "evaluate") for run in ("one", "ten")]
    assert set(found) == {"prepare/digits.json", "experts/smooth.json", *runs, "report.json"}
    assert found["distill/ten.json"]["distill"]["lr_img"] == 10
    assert "balanced_loss" not in found["distill/ten.json"]["distill"], "what is off is not told"
    del valid_params["runs"]["one"]
    assert set(written(valid_params, tmp_path)) == {*found} - {"distill/one.json", "evaluate/one.json"}


@pytest.mark.parametrize(
    ("section", "name", "field", "value", "expected"),
    [
        ("networks", "other", "", {"family": "MLP"}, {"report.json"}),
        ("runs", "one", "cross", ["other"], {"evaluate/one.json", "report.json"}),
        ("runs", "one", "ipc", 2, {"distill/one.json", "report.json"}),
        ("evaluate", "mtt", "students", 3, {"evaluate/one.json", "evaluate/ten.json", "report.json"}),
        ("distill", "other", "", {"initialisation": "random", "iterations": 1}, set()),
        ("prepare", "digits", "path", "/elsewhere", set()),
        ("distill", "ast", "balanced_loss", False, set()),
        ("distill", "ast", "balanced_loss", True, {"distill/one.json", "distill/ten.json", "report.json"}),
        ("experts", "smooth", "count", 3, {"experts/smooth.json", "distill/one.json", "distill/ten.json", "report.json"}),
    ],
)
def test_a_setting_touches_the_stages_that_use_it(
    section: str, name: str, field: str, value: Any, expected: set[str], valid_params: dict[str, Any], tmp_path: Path
) -> None:
    if section == "runs":
        valid_params["networks"]["other"] = {"family": "MLP"}
    assert touched(valid_params, section, name, field, value, tmp_path) == expected


def test_workers_and_checkpoints_touch_nothing(valid_params: dict[str, Any], tmp_path: Path) -> None:
    before = written(valid_params, tmp_path)
    valid_params["runtime"] |= {"workers": 7, "checkpoint_seconds": 1.0}
    assert written(valid_params, tmp_path) == before
    valid_params["runtime"] |= {"precision": "bfloat16"}
    assert written(valid_params, tmp_path) != before


def test_families_are_named_as_their_modules() -> None:
    for spec in (*SPECS, VGG11(family="VGG11")):
        assert (ROOT / code.FAMILIES / f"{spec.family.lower()}.py").exists()
