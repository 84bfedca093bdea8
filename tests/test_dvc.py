"""dvc.yaml against the code: its commands exist, its code dependencies are what the artifacts depend on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import typer
from ruamel.yaml import YAML

from src.cli.app import whole
from src.settings.params import load
from src.store import code, files, removed
from tests.imports import ROOT
from tests.small_run import STORE

PIPELINE: dict[str, Any] = YAML(typ="safe").load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
STAGES = ("prepare", "experts", "distill", "evaluate", "report")


def body(stage: str) -> dict[str, Any]:
    return PIPELINE[stage].get("do", PIPELINE[stage])


def paths(stage: str, kind: str) -> set[str]:
    return {next(iter(entry)) if isinstance(entry, dict) else entry for entry in body(stage).get(kind, [])}


def test_stages_and_their_order() -> None:
    assert tuple(PIPELINE) == ("resolve", *STAGES)


@pytest.mark.parametrize("stage", STAGES)
def test_command_exists_with_its_option(stage: str) -> None:
    words = body(stage)["cmd"].split()
    assert words[:4] == ["python", "-m", "src.cli", stage]
    command = typer.main.get_command(whole()).commands[stage]  # type: ignore[attr-defined]
    options = {name for parameter in command.params for name in parameter.opts}
    assert set(words[4::2]) <= options


def test_resolve_depends_on_all_code_that_any_bytes_rest_on() -> None:
    declared = paths("resolve", "deps") - {"params.yaml"}
    used = {module for stage in STAGES for module in code.closure(code.ENTRIES[stage])} | {"src/stages/resolve.py"}
    used |= {"src/settings/params.py", "src/settings/resolved.py", "src/store/code.py"}
    assert {"/".join(module.split("/")[:2]) for module in used} == declared


@pytest.mark.parametrize("stage", STAGES)
def test_stages_depend_on_what_is_resolved(stage: str) -> None:
    place = "report.json" if stage == "report" else f"{stage}/${{key}}.json"
    assert f"data/resolved/{place}" in paths(stage, "deps")
    assert not [path for path in paths(stage, "deps") if path.startswith("src/")]
    assert "params" not in body(stage)


@pytest.mark.parametrize("stage", STAGES)
def test_outputs_are_the_artifacts(stage: str) -> None:
    made = removed.outputs(STORE, stage, "${key}") if stage != "report" else tuple(map(STORE.report_file, ("html", "md")))
    assert paths(stage, "outs") | paths(stage, "metrics") | paths(stage, "plots") == {path.as_posix() for path in made}


def test_the_report_depends_on_the_folders_from_which_it_removes() -> None:
    data = {path for path in paths("report", "deps") if path.startswith("data/")} - {"data/resolved/report.json"}
    assert data == {f"data/{folder}" for folder in removed.FOLDERS}


def test_params_yaml_is_valid_and_its_reals_have_a_dot() -> None:
    """YAML 1.1 readers take 1e-3 for text: with a dot every reader sees the same number."""
    load(ROOT / "params.yaml")
    text = (ROOT / "params.yaml").read_text(encoding="utf-8")
    assert not [word for word in text.split() if "e-" in word and "." not in word and word[0].isdigit()]


def test_lock_is_up_to_date_with_the_stages() -> None:
    lock = YAML(typ="safe").load((ROOT / "dvc.lock").read_text(encoding="utf-8"))["stages"]
    params = load(ROOT / "params.yaml")
    names = [f"prepare@{name}" for name in params.prepare] + [f"experts@{name}" for name in params.experts]
    names += [f"{stage}@{name}" for stage in ("distill", "evaluate") for name in params.runs]
    assert set(lock) == {"resolve", *names, "report"}


def test_dvc_finds_the_experts_of_a_run_without_any() -> None:
    """DVC puts None for null into the template's path; what is there must be in git."""
    (path,) = (path for path in paths("distill", "deps") if path.startswith("data/experts"))
    assert Path(path.replace("${item.experts}", str(None))).parent == STORE.no_experts
    assert any(one.is_file() for one in (ROOT / STORE.no_experts / "trajectories").iterdir())


def test_digest_of_a_folder_is_dvcs(tmp_path: Path) -> None:
    (tmp_path / "b").write_text("two")
    (tmp_path / "a").write_text("one")
    # what `dvc add` records for this folder
    assert files.digest(tmp_path) == "28ccbdc60ec0c5961088990f02cc7124.dir"
    (tmp_path / ".DS_Store").write_text("a file manager's")  # which .dvcignore names
    assert files.digest(tmp_path) == "28ccbdc60ec0c5961088990f02cc7124.dir"
