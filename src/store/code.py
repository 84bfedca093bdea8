"""The code that an artifact's bytes rest on: what its stage imports, of networks and targets those that it takes.

Digests are of what code does, not of how it is written: a changed comment makes the same artifact. What reaches the screen, the
tracking store or the way to a file, never what is in one, is left out; so are fields of settings, as their values are told.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

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
        "src/process/cluster.py",
        "src/process/depot.py",
        "src/process/errands.py",
        "src/process/hand.py",
        "src/process/progress.py",
        "src/process/stopping.py",
        "src/settings/params.py",  # what it reads is told by value
        "src/settings/resolved.py",
        "src/sources/flaws.py",
        "src/stages/run_log.py",
        "src/store/busy.py",
        "src/store/code.py",
        "src/store/cost.py",
        "src/store/locked.py",
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
    families = {family for spec in specs for family in spec.families}
    named = {f"{FAMILIES}{family.lower()}.py" for family in families} | {f"{TARGETS}{kind}.py" for kind in targets}
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


def imported(module: str, root: Path = ROOT) -> frozenset[str]:
    """Modules of the package that a module imports, wherever in its text."""
    return frozenset(path for path in _read(module, root).imports if (root / path).is_file())


def templates(module: str, root: Path = ROOT) -> tuple[str, ...]:
    """Files beside a module that it fills in or builds, named in its text."""
    beside = (f"{Path(module).parent.as_posix()}/{name}" for name in _read(module, root).templates)
    return tuple(path for path in beside if (root / path).is_file())


def meaning(module: str, root: Path = ROOT) -> str:
    """The syntax tree without positions and docstrings; of settings their functions alone."""
    return _read(module, root).meaning


class Reading(NamedTuple):
    """What a module's text tells."""

    imports: frozenset[str]  # paths of what it imports of the package, where there are such modules
    templates: tuple[str, ...]  # names of files beside it
    meaning: str


def _read(module: str, root: Path) -> Reading:
    return _reading((root / module).read_text(encoding="utf-8"), module.startswith(SETTINGS))


@functools.cache
def _reading(text: str, of_settings: bool) -> Reading:
    """By the text itself, which takes long to parse and is asked for by every stage, and from every folder."""
    tree = ast.parse(text)
    nodes = list(ast.walk(tree))
    return Reading(_imports(nodes), _templates(nodes), _meaning(tree, nodes, of_settings))


def _imports(nodes: Iterable[ast.AST]) -> frozenset[str]:
    names: list[str] = []
    for node in nodes:
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return frozenset(name.replace(".", "/") + ".py" for name in names if name.startswith("src."))


def _templates(nodes: Iterable[ast.AST]) -> tuple[str, ...]:
    named = (node.value for node in nodes if isinstance(node, ast.Constant))
    return tuple(name for name in named if isinstance(name, str) and name.endswith((".j2", ".cpp")))


def _meaning(tree: ast.Module, nodes: Sequence[ast.AST], of_settings: bool) -> str:
    for node in nodes:
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and ast.get_docstring(node):
            del node.body[0]
    if of_settings:
        return "".join(ast.dump(node) for node in nodes if isinstance(node, ast.FunctionDef))
    return ast.dump(tree)


def _bytes(path: str, root: Path) -> str:
    return hashlib.sha256((root / path).read_bytes()).hexdigest()
