"""The code that an artifact's bytes rest on: what its stage imports, of networks and targets those that it takes.

Digests are of what code does, not of how it is written: a changed comment makes the same artifact. What reaches the screen, the
tracking store or the way to a file, never what is in one, is left out; so are fields of settings, as their values are told.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

from src.settings.networks import Network

ROOT = Path(__file__).resolve().parents[2]  # of the code that runs, also where a study's folder only has a link to it
ENTRIES = {stage: f"src/stages/{stage}.py" for stage in ("prepare", "experts", "distill", "evaluate", "report")}
SETTINGS = "src/settings/"
FAMILIES = "src/maths/families/"
TARGETS = "src/maths/targets/"
NEVER_IN_BYTES = frozenset(
    (
        "src/__init__.py",
        "src/ground/counting.py",
        "src/ground/errors.py",
        "src/ground/torchvision_ops.py",
        "src/pages/tables.py",
        "src/process/progress.py",
        "src/process/stopping.py",
        "src/settings/params.py",  # what it reads is told by value
        "src/settings/resolved.py",
        "src/sources/flaws.py",
        "src/stages/run_log.py",
        "src/store/code.py",
        "src/store/cost.py",
        "src/store/provenance.py",
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
    )
)


def digest(stage: str, specs: Iterable[Network] = (), root: Path = ROOT, targets: Iterable[str] = ()) -> str:
    """Of all code that a stage's bytes rest on, where it builds networks of these specifications and takes these targets."""
    named = {f"{FAMILIES}{spec.family.lower()}.py" for spec in specs} | {f"{TARGETS}{kind}.py" for kind in targets}
    modules = closure(ENTRIES[stage], *sorted(named), root=root)
    beside = sorted({path for module in modules for path in templates(module, root)})
    parts = [(path, meaning(path, root)) for path in sorted(modules)] + [(path, _bytes(path, root)) for path in beside]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


@functools.cache
def closure(*entries: str, root: Path = ROOT) -> frozenset[str]:
    """The modules that these import, wherever in their text, and all that those do; without NEVER_IN_BYTES."""
    found: set[str] = set()
    waiting = set(entries)
    while waiting:
        module = waiting.pop()
        found.add(module)
        waiting |= imported(module, root) - found - NEVER_IN_BYTES
    return frozenset(found)


@functools.cache
def imported(module: str, root: Path = ROOT) -> frozenset[str]:
    """Modules of the package that a module imports, wherever in its text."""
    names: list[str] = []
    for node in ast.walk(_tree(module, root)):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    paths = {name.replace(".", "/") + ".py" for name in names if name.startswith("src.")}
    return frozenset(path for path in paths if (root / path).is_file())


def templates(module: str, root: Path = ROOT) -> tuple[str, ...]:
    """Files beside a module that it fills in or builds, named in its text."""
    named = (node.value for node in ast.walk(_tree(module, root)) if isinstance(node, ast.Constant))
    beside = (
        f"{Path(module).parent.as_posix()}/{name}" for name in named if isinstance(name, str) and name.endswith((".j2", ".cpp"))
    )
    return tuple(path for path in beside if (root / path).is_file())


@functools.cache
def meaning(module: str, root: Path = ROOT) -> str:
    """The syntax tree without positions and docstrings; of settings their functions alone."""
    tree = _tree(module, root)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and ast.get_docstring(node):
            del node.body[0]
    if module.startswith(SETTINGS):
        return "".join(ast.dump(node) for node in ast.walk(tree) if isinstance(node, ast.FunctionDef))
    return ast.dump(tree)


def _tree(module: str, root: Path) -> ast.Module:
    return ast.parse((root / module).read_text(encoding="utf-8"))


def _bytes(path: str, root: Path) -> str:
    return hashlib.sha256((root / path).read_bytes()).hexdigest()
