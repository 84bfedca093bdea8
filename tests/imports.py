"""The package's own imports, read from its source."""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).parent.parent
# these reach the screen, the tracking store or where artifacts lie, never what is in one: a change in them must not make a
# stage run again
NOT_IN_RESULTS = {
    "src/__init__.py",
    "src/ground/counting.py",
    "src/ground/errors.py",
    "src/ground/torchvision_ops.py",
    "src/pages/tables.py",
    "src/process/progress.py",
    "src/process/stopping.py",
    "src/sources/flaws.py",
    "src/stages/run_log.py",
    "src/store/cost.py",
    "src/store/removed.py",
    "src/tracking/backlog.py",
    "src/tracking/courier.py",
    "src/tracking/delivery.py",
    "src/tracking/journal.py",
    "src/tracking/mlartifacts.py",
    "src/tracking/mlflow_row.py",
    "src/tracking/mlflow_store.py",
    "src/tracking/store_trouble.py",
    "src/tracking/stores.py",
    "src/tracking/system_metrics.py",
    "src/tracking/tracker.py",
}


def modules() -> list[str]:
    """Every module of the package, as a path from the repository's top."""
    return sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "src").rglob("*.py"))


def imported(module: str) -> set[str]:
    """Modules of the package that a module imports, wherever in its text."""
    found: set[str] = set()
    for node in ast.walk(ast.parse((ROOT / module).read_text(encoding="utf-8"))):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        found |= {path for name in names if (path := name.replace(".", "/") + ".py") in set(modules())}
    return found


def code_of_results(stage: str) -> set[str]:
    """The modules that a stage's artifacts depend on: the closure of its imports, without those of NOT_IN_RESULTS."""
    closure: set[str] = set()
    waiting = {f"src/stages/{stage}.py"}
    while waiting:
        module = waiting.pop()
        closure.add(module)
        waiting |= imported(module) - closure - NOT_IN_RESULTS
    return closure
