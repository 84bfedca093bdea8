"""What an artifact says of the code and packages that made it."""

from __future__ import annotations

import ast
import sys
from importlib.metadata import packages_distributions
from itertools import pairwise
from pathlib import Path

import pytest

from src.store import provenance
from tests.imports import ROOT, code_of_results

STAGES = ("prepare", "experts", "distill", "evaluate")
NOT_IN_BYTES = {
    "filelock",
    "joblib",
    "pydantic",
    "rich",
    "ruamel.yaml",
    "threadpoolctl",
}  # they only read, wait, start or speak


def test_code_is_that_of_the_stage_alone(tmp_path: Path) -> None:
    listed = {"experts": ["src/a.py", "data/x", "src/b.py"], "distill": ["src/b.py"]}
    stages = "".join(f"  {name}:\n    deps: [{', '.join(deps)}]\n" for name, deps in listed.items())
    (tmp_path / "dvc.yaml").write_text(f"stages:\n{stages}")
    (tmp_path / "src").mkdir()
    for name in ("a.py", "b.py", "c.py"):
        (tmp_path / "src" / name).write_text(name)
    found = [(provenance.code("experts", tmp_path), provenance.code("distill", tmp_path))]
    for name in ("a.py", "b.py", "c.py"):
        (tmp_path / "src" / name).write_text("changed")
        found.append((provenance.code("experts", tmp_path), provenance.code("distill", tmp_path)))
    changed = [tuple(a != b for a, b in zip(*pair, strict=True)) for pair in pairwise(found)]
    assert changed == [(True, False), (True, True), (False, False)]


def test_what_only_readers_see_is_no_code(tmp_path: Path) -> None:
    (tmp_path / "dvc.yaml").write_text("stages: {report: {deps: [src/a.py]}}")
    (tmp_path / "src").mkdir()
    plain = "def f(x):\n    return x\n"
    told = '"""A module."""\n\n# why\ndef f(x):\n    """Says."""\n\n    return x  # back\n'
    found = []
    for source in (plain, told, plain.replace("return x", "return -x")):
        (tmp_path / "src/a.py").write_text(source)
        found.append(provenance.code("report", tmp_path))
    assert found[0] == found[1] != found[2]


def test_it_is_the_code_that_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also in a study's folder, which has no dvc.yaml."""
    before = provenance.of("distill")
    monkeypatch.chdir(tmp_path)
    assert provenance.of("distill") == before
    assert provenance.ROOT == ROOT
    assert len({provenance.code(stage) for stage in STAGES}) == len(STAGES)


@pytest.mark.parametrize("stage", STAGES)
def test_packages_are_those_that_the_results_import(stage: str) -> None:
    imported: set[str] = set()
    for module in code_of_results(stage):
        for node in ast.walk(ast.parse((ROOT / module).read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                imported |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                imported.add(node.module.partition(".")[0])
    distributions = packages_distributions()
    used = {distributions[name][0].lower() for name in imported - {"src"} - sys.stdlib_module_names}
    assert used - NOT_IN_BYTES <= set(provenance.PACKAGES)
