"""The layer rule: a module imports only from its own layer and those below; stages never import each other."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from tests.imports import ROOT, imported, modules

LAYERS = (
    ("src/ground", "src/settings"),
    "src/maths",
    "src/process",
    "src/loops",
    "src/store",
    ("src/sources", "src/tracking", "src/pages", "src/editing"),
    "src/exchange",
    ("src/stages", "src/bench", "src/api.py"),
    "src/studies",
    "src/cli",
)
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
    assert {m for m in importers if not m.startswith("src/bench/")} == {"src/cli/benches.py"}
    stages = {
        other for m in modules() if m.startswith("src/bench/") for other in imported(m) if other.startswith("src/stages/")
    }
    assert stages <= {"src/stages/__init__.py", "src/stages/students.py"}  # their training is what is measured


def text_of(module: str) -> str:
    return (ROOT / module).read_text(encoding="utf-8")


def test_only_the_store_and_its_rows_import_mlflow() -> None:
    found = [m for m in modules() if re.search(r"(import|from) mlflow\b", text_of(m))]
    assert found == ["src/tracking/mlflow_row.py", "src/tracking/mlflow_store.py"]


def test_maths_touches_no_disk() -> None:
    words = ("open(", "pathlib", "src.store", "src.process", "mlflow", "typer")
    assert not [(m, w) for m in modules() if m.startswith("src/maths") for w in words if w in text_of(m)]


def test_only_evaluate_opens_the_test_split() -> None:
    readers = [m for m in modules() if m.startswith("src/stages/") and '"test"' in text_of(m)]
    assert readers == ["src/stages/evaluate.py"]  # prepare writes it, as the one of all splits


def test_studies_leave_the_test_split_alone() -> None:
    """But for `compare` and `adopt`, which read what `evaluate` found there, and what a user asks for by --test."""
    readers = [m for m in modules() if m.startswith("src/studies/") and '"test"' in text_of(m)]
    named = ("ablate", "compare", "method_groups", "methods", "samples", "snapshots", "variants")
    assert readers == [f"src/studies/{name}.py" for name in named]


def loaded_by(code: str, names: tuple[str, ...]) -> list[str]:
    """Which of the libraries the code imports, in a process of its own."""
    code += f"\nprint(*[name for name in {names} if name in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    return found.stdout.split()


def test_help_imports_no_heavy_library() -> None:
    assert loaded_by("import sys, src.cli", ("torch", "mlflow", "matplotlib", "optuna", "sklearn", "pandas")) == []


def test_stages_start_without_what_only_some_sources_or_methods_take() -> None:
    stages = ", ".join(f"src.stages.{stage}" for stage in ("prepare", "experts", "distill", "evaluate", "report", "init"))
    assert (
        loaded_by(f"import sys, {stages}", ("mlflow", "sklearn", "scipy", "pandas", "pyarrow", "torchvision", "matplotlib"))
        == []
    )


def test_the_courier_starts_without_torch() -> None:
    assert loaded_by("import sys, src.tracking.courier", ("torch", "sklearn", "matplotlib")) == []


def test_a_name_is_refused_before_anything_is_imported() -> None:
    words = ["src.cli", "init", "--data", "x", "--name", "a?", "--size", "8"]
    code = f"import sys; sys.argv = {words}\nfrom src import cli\n"
    code += "try:\n cli.main()\nexcept SystemExit as end:\n assert end.code == 1"
    assert loaded_by(code, ("torch", "numpy", "sklearn", "pyarrow")) == []
