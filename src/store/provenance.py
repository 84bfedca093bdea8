"""Provenance: the code and the packages that made an artifact, as its record tells them."""

from __future__ import annotations

import ast
import hashlib
import json
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

ROOT = Path(__file__).resolve().parents[2]  # of the code that runs, also where a study's folder only has a link to it
PACKAGES = ("numpy", "pillow", "pyarrow", "safetensors", "scikit-learn", "scipy", "torch", "torchvision")


def of(stage: str) -> dict[str, Any]:
    """What makes the stage's artifacts, beside settings and inputs."""
    return {"code": code(stage), "packages": {"python": platform.python_version()} | {name: version(name) for name in PACKAGES}}


def code(stage: str, root: Path = ROOT) -> str:
    """Digest of the modules that dvc.yaml lists for the stage: those its bytes depend on, so that no other one changes them.

    Of what they do, not of how it is written: a changed comment makes the same artifact, after which DVC runs nothing further.
    """
    stages = YAML(typ="safe").load((root / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
    modules = sorted(path for path in stages[stage].get("do", stages[stage])["deps"] if path.startswith("src/"))
    text = json.dumps([(path, _meaning((root / path).read_text(encoding="utf-8"))) for path in modules])
    return hashlib.sha256(text.encode()).hexdigest()


def _meaning(source: str) -> str:
    """The syntax tree without positions and docstrings."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)) and ast.get_docstring(node):
            del node.body[0]
    return ast.dump(tree)
