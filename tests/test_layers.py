"""The layer rule: a module imports only from its own layer and those below; stages never import each other."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from tests.imports import ROOT, imported, modules

LAYERS = ("src/ground", "src/maths", "src/io", ("src/stages", "src/bench"), "src/studies", "src/cli.py")
STAGES = {f"src/stages/{name}.py" for name in ("prepare", "experts", "distill", "evaluate", "report")}


def layer(module: str) -> int:
    return next(level for level, prefix in enumerate(LAYERS) if module.startswith(prefix))


@pytest.mark.parametrize("module", [m for m in modules() if m != "src/__init__.py"])
def test_imports_point_downwards(module: str) -> None:
    upwards = {other for other in imported(module) - {"src/__init__.py"} if layer(other) > layer(module)}
    assert not upwards


@pytest.mark.parametrize("stage", sorted(STAGES))
def test_no_stage_imports_another(stage: str) -> None:
    assert not (imported(stage) & STAGES) - {stage}


def test_only_the_command_line_imports_the_bench() -> None:
    importers = {m for m in modules() if any(other.startswith("src/bench/") for other in imported(m))}
    assert {m for m in importers if not m.startswith("src/bench/")} == {"src/cli.py"}
    stages = {
        other for m in modules() if m.startswith("src/bench/") for other in imported(m) if other.startswith("src/stages/")
    }
    assert stages <= {"src/stages/__init__.py", "src/stages/students.py"}  # their training is what is measured


def text_of(module: str) -> str:
    return (ROOT / module).read_text(encoding="utf-8")


def test_only_the_store_imports_mlflow() -> None:
    assert [m for m in modules() if re.search(r"(import|from) mlflow\b", text_of(m))] == ["src/io/mlflow_store.py"]


def test_maths_touches_no_disk() -> None:
    words = ("open(", "pathlib", "src.io", "mlflow", "typer")
    assert not [(m, w) for m in modules() if m.startswith("src/maths") for w in words if w in text_of(m)]


def test_only_evaluate_opens_the_test_split() -> None:
    readers = [m for m in modules() if m.startswith("src/stages/") and '"test"' in text_of(m)]
    assert readers == ["src/stages/evaluate.py"]  # prepare writes it, as the one of all splits


def test_studies_leave_the_test_split_alone() -> None:
    """But for `compare`, which reads what `evaluate` found there, and what a user asks for by --test."""
    readers = [m for m in modules() if m.startswith("src/studies/") and '"test"' in text_of(m)]
    assert readers == ["src/studies/ablate.py", "src/studies/compare.py", "src/studies/variants.py"]


def test_help_imports_no_heavy_library() -> None:
    heavy = ("torch", "mlflow", "matplotlib", "optuna", "sklearn", "pandas")
    code = f"import sys, src.cli; print([name for name in {heavy} if name in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
