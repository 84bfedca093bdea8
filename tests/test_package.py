"""The package as pip installs it: its metadata, what is in its wheel, and what it says where an extra is missing."""

from __future__ import annotations

import ast
import functools
import importlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Mapping
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from src.ground import errors
from src.tracking import store_trouble
from tests.imports import ROOT, imported, modules
from tests.test_api import BLOCK, TEN_LINES

PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
CORE = [Requirement(line) for line in PROJECT["dependencies"]]
PIPELINE = [Requirement(line) for line in PROJECT["optional-dependencies"]["pipeline"]]
CLUSTER = [Requirement(line) for line in PROJECT["optional-dependencies"]["cluster"]]
OURS = [module for module in modules() if not module.startswith("src/exchange/templates/")]  # those are for other places
# modules that commands without it do not import
TAKES_PIPELINE = ("src/tracking/", "src/studies/", "src/pages/pictures.py", "src/stages/publish.py", "src/stages/repro.py")
BUILD = "from setuptools import build_meta; print(build_meta.build_wheel('made'))"
INSTALLED = f"""
{BLOCK}
import src, sys
print(src.__file__)
{TEN_LINES}
"""


def pins() -> dict[str, str]:
    """Of the requirements, and of what the extra [cluster] takes, which the constraints hold."""
    lines = [line for name in ("constraints.txt", "requirements.txt") for line in (ROOT / name).read_text("utf-8").splitlines()]
    found = [Requirement(line) for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(one.name): str(one.specifier).removeprefix("==") for one in found}


@pytest.mark.parametrize("wanted", [*CORE, *PIPELINE, *CLUSTER], ids=str)
def test_a_requirement_allows_what_the_repository_pins(wanted: Requirement) -> None:
    assert wanted.specifier.contains(pins()[canonicalize_name(wanted.name)])


def outside(module: str) -> set[str]:
    """Packages of others that a module of ours imports, wherever in its text."""
    names: set[str] = set()
    for node in ast.walk(ast.parse((ROOT / module).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add((node.module or "").partition(".")[0])
    return names - {*sys.stdlib_module_names, "src", "__future__"}


def closure(module: str) -> set[str]:
    found, waiting = set[str](), {module}
    while waiting:
        found.add(one := waiting.pop())
        waiting |= imported(one) - found
    return found


@functools.cache
def distributions() -> Mapping[str, list[str]]:
    return packages_distributions()


def required_by(names: set[str]) -> set[str]:
    """What pip calls the packages of these names, as the requirements do where several share one."""
    known, wanted = distributions(), named([*CORE, *PIPELINE, *CLUSTER])
    optional = {name: [name] for name in named(CLUSTER)}  # imported by the name that pip knows, and not installed everywhere
    found = {name: {str(canonicalize_name(one)) for one in {**optional, **known}[name]} for name in names}
    return {min(several & wanted or several) for several in found.values()}


def named(requirements: list[Requirement]) -> set[str]:
    return {str(canonicalize_name(one.name)) for one in requirements}


def test_all_that_is_imported_is_required_and_nothing_else() -> None:
    taken = required_by(set().union(*map(outside, OURS)))
    assert taken == named(CORE) | named(PIPELINE) | named(CLUSTER)


def test_the_api_takes_the_core_alone() -> None:
    families = {module for module in modules() if module.startswith("src/maths/families/")}
    taken = set().union(*map(outside, closure("src/api.py") | families))
    assert required_by(taken) <= named(CORE)


def test_only_tracking_studies_and_figures_take_the_extra() -> None:
    extra = named(PIPELINE)
    takers = {module for module in OURS if required_by(outside(module)) & extra}
    assert not {module for module in takers if not module.startswith(TAKES_PIPELINE)}


def test_commands_that_track_nothing_start_without_the_extra() -> None:
    """Those that docs/api.md names."""
    stages = (
        *("clean", "export", "importing", "init", "plan", "plan_cells", "plan_cluster", "prepare", "presets", "report"),
        *("repro", "resolve", "verify"),
    )
    benches = ("comparison", "limits", "process", "training", "worker")
    needed = ", ".join([*(f"src.stages.{name}" for name in stages), *(f"src.bench.{name}" for name in benches), "src.cli.app"])
    code = "import sys; sys.modules.update(dict.fromkeys(('mlflow', 'dvc', 'optuna', 'matplotlib', 'psutil', 'pynvml')))\n"
    code += f"import {needed}; src.cli.app.whole()"
    done = run(ROOT, sys.executable, "-c", code)
    assert done.returncode == 0, done.stderr


def test_the_command_is_that_of_the_module() -> None:
    from src import cli

    module, _, function = PROJECT["scripts"]["ast-distill"].partition(":")
    assert getattr(importlib.import_module(module), function) is cli.run


def test_the_name_is_what_the_sentence_says() -> None:
    assert PROJECT["name"] == errors.DISTRIBUTION
    assert list(PROJECT["optional-dependencies"]) == [errors.EXTRA, errors.CLUSTER, errors.ENCODERS]


@pytest.mark.parametrize("installed", [True, False])
def test_a_missing_extra_is_named_where_pip_has_installed_the_package(
    installed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a build leaves in a clone looks like an installed package too, but pip has not put it there."""
    place = tmp_path / f"smooth_distillation-0.1.0.{'dist' if installed else 'egg'}-info"
    place.mkdir()
    text = f"Metadata-Version: 2.1\nName: {errors.DISTRIBUTION}\nVersion: 0.1.0\n"
    for name in ("METADATA", "PKG-INFO"):
        (place / name).write_text(text, encoding="utf-8")
    if installed:
        (place / "INSTALLER").write_text("pip\n", encoding="utf-8")
    others = [path for path in sys.path if not list(Path(path or ".").glob("smooth_distillation*"))]
    monkeypatch.setattr(sys, "path", [str(tmp_path), *others])
    pip = "install it with `pip install 'smooth-distillation[pipeline]'`"
    clone = "activate the environment with `source .venv/bin/activate`, which `make repro` makes"
    error = ModuleNotFoundError("No module named 'mlflow'", name="mlflow")
    expected = f"{sys.executable} has no package mlflow: {pip if installed else clone}"
    assert errors.lacking(error) == expected
    assert store_trouble.sentence(error, "sqlite:///mlflow.db") == expected


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built of a copy of what goes into it: setuptools leaves its traces beside the source."""
    if importlib.util.find_spec("setuptools") is None:
        pytest.skip("setuptools, which builds the wheel, is not installed")
    folder = tmp_path_factory.mktemp("source")
    shutil.copytree(ROOT / "src", folder / "src", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    done = subprocess.run([sys.executable, "-c", BUILD], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder / "made" / done.stdout.split()[-1]


def test_the_wheel_holds_every_file_of_the_package(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as file:
        found = {name for name in file.namelist() if ".dist-info/" not in name}
        commands = next(file.read(name).decode() for name in file.namelist() if name.endswith("entry_points.txt"))
    files = (path for path in (ROOT / "src").rglob("*") if path.is_file() and path.suffix != ".pyc")
    data = {path.relative_to(ROOT).as_posix() for path in files if path.suffix != ".py"}
    assert {"src/maths/kernels.cpp", "src/py.typed"} < data
    assert found == {*modules(), *data}
    assert "ast-distill = src.cli:run" in commands


def test_unpacked_it_works_without_the_extra(wheel: Path, tmp_path: Path) -> None:
    """With its own source in its digests, and its own templates and presets."""
    with zipfile.ZipFile(wheel) as file:
        file.extractall(tmp_path / "site")
    code = f"{BLOCK}\nfrom src.store import code; from src.editing import presets; from src.exchange import scripts\n"
    code += "print(code.ROOT, code.digest('report'), len(presets.load()) > 20, len(scripts.assembled('pt')) > 999)"
    done = run(tmp_path, sys.executable, "-c", code, PYTHONPATH=str(tmp_path / "site"))
    from src.store.code import digest

    assert done.stdout.split() == [str(tmp_path / "site"), digest("report"), "True", "True"], done.stderr


def run(folder: Path, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    kept = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV", "DVC_ROOT")}
    given = {**kept, "OMP_NUM_THREADS": "1", "COLUMNS": "200", **variables}
    return subprocess.run(words, cwd=folder, env=given, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_installed_without_the_extra_it_makes_the_same_bytes(wheel: Path, tmp_path: Path) -> None:
    """In an environment of its own, from another folder, with the command beside it; the extra is then asked for."""
    made = run(tmp_path, sys.executable, "-m", "venv", str(tmp_path / "venv"))
    if made.returncode:
        pytest.skip(f"no virtual environment can be made here: {made.stdout.splitlines()[-1:]}")
    python, command = tmp_path / "venv/bin/python", tmp_path / "venv/bin/ast-distill"
    given = [word for name in ("requirements.txt", "constraints.txt") for word in ("--constraint", str(ROOT / name))]
    done = run(tmp_path, str(python), "-m", "pip", "install", "--quiet", "--no-cache-dir", *given, str(wheel))
    if done.returncode:
        pytest.skip(f"pip finds no packages here: {done.stderr.strip().splitlines()[-1]}")
    folders = [tmp_path / "installed", tmp_path / "clone"]
    for folder, interpreter, path in zip(folders, (str(python), sys.executable), ("", str(ROOT)), strict=True):
        folder.mkdir()
        told = run(folder, interpreter, "-c", INSTALLED, **({"PYTHONPATH": path} if path else {}))
        assert told.returncode == 0, told.stderr
        assert Path(told.stdout.split()[0]).is_relative_to(ROOT if path else tmp_path / "venv")
    first, second = (folder.joinpath("synthetic.safetensors").read_bytes() for folder in folders)
    assert first == second
    shutil.copy(ROOT / "params.yaml", folders[0])
    assert "Usage: ast-distill" in run(folders[0], str(command), "--help").stdout
    prepared = run(folders[0], str(command), "prepare", "--dataset", "digits")
    assert prepared.returncode == 0, prepared.stderr
    for words in ("experts", "ui", "tune --dataset digits --ipc 1", "repro"):
        refused = run(folders[0], str(command), *words.split(), PATH="/usr/bin:/bin")
        assert refused.returncode == 1
        assert refused.stderr.endswith("install it with `pip install 'smooth-distillation[pipeline]'`\n"), refused.stderr
