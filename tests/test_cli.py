"""The command line as a user meets it: bad input ends in one clear sentence on stderr, no traceback, exit code not 0."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from ruamel.yaml import YAML

from src import cli
from src.settings import resolved
from src.settings.params import load, parse
from src.stages import prepare
from tests.imports import ROOT
from tests.small_run import STORE


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with the repository's params.yaml."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    monkeypatch.setenv("COLUMNS", "200")
    shutil.copy(ROOT / "params.yaml", tmp_path)
    return tmp_path


def change(place: str, value: Any) -> None:
    """Set one value of the folder's params.yaml; the place is its dotted path."""
    yaml, file = YAML(), Path("params.yaml")
    tree = yaml.load(file.read_text(encoding="utf-8"))
    *parents, last = place.split(".")
    node = tree
    for key in parents:
        node = node[key]
    node[last] = value
    yaml.dump(tree, file)


def fails(words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    """Run a command that must fail with a sentence; returns it."""
    monkeypatch.setattr(sys, "argv", ["src.cli", *words.split()])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    error = capsys.readouterr().err
    assert stop.value.code not in (0, None)
    assert "Traceback" not in error
    return error


RUN = "runs.digits-ipc1-ast"
BAD = [
    (f"{RUN}.distill.lr_imgs", 3.0, f"{RUN}.distill.lr_imgs: unknown key: choose from"),
    (f"{RUN}.distill.lr_img", "fast", f"{RUN}.distill.lr_img: input should be a valid number; got 'fast'"),
    (f"{RUN}.ipc", 0, f"{RUN}.ipc: input should be greater than or equal to 1"),
    (f"{RUN}.distill.max_start_epoch", 500, f"{RUN}.distill.max_start_epoch: max_start_epoch - 1 + expert_epochs = "),
    (f"{RUN}.dataset", "digit", f"{RUN}.dataset: 'digit' is not in the section prepare: choose one of digits"),
    (f"{RUN}.network", "ResNet", f"{RUN}.network: 'ResNet' is not in the section networks: choose one of ConvNetD2W32"),
    ("prepare.digits.source", 3, "prepare.digits.source: input should be a valid string; got 3"),
    (
        "networks.ConvNetD2W32.family",
        "Net",
        "networks.ConvNetD2W32.family: must be one of ConvNet, MLP, LeNet, AlexNet, VGG11, ",
    ),
    ("seed", -1, "seed: must be a whole number"),
]


@pytest.mark.parametrize(("place", "value", "sentence"), BAD, ids=[f"{place}={value}" for place, value, _ in BAD])
@pytest.mark.parametrize("command", ["distill --run digits-ipc1-ast", "report"])
def test_bad_parameters(
    command: str, place: str, value: Any, sentence: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    change(place, value)
    assert sentence in fails(command, monkeypatch, capsys)


def test_all_problems_at_once(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for place, value, _ in (BAD[1], BAD[2], BAD[6], BAD[8]):
        change(place, value)
    error = fails("prepare", monkeypatch, capsys)
    assert "params.yaml has 4 problems" in error
    assert all(sentence in error for _, _, sentence in (BAD[1], BAD[2], BAD[6], BAD[8]))


UNKNOWN = [
    ("prepare --dataset cifar11", "no data set is named 'cifar11': choose one of digits"),
    ("experts --experts dull", "no set of experts is named 'dull': choose one of digits-plain, digits-smooth"),
    ("distill --run digits-ipc2-ast", "no run is named 'digits-ipc2-ast': choose one of digits-ipc1-ast"),
    ("evaluate --run x", "no run is named 'x'"),
]


@pytest.mark.parametrize(("command", "sentence"), UNKNOWN)
def test_unknown_names(
    command: str, sentence: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert sentence in fails(command, monkeypatch, capsys)


def test_a_stage_too_early_names_the_command_before_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = "distill --run digits-ipc1-ast"
    assert "make it with `python -m src.cli prepare --dataset digits`" in fails(run, monkeypatch, capsys)
    prepare.run(STORE, resolved.data_set(load(), "digits"))
    assert "make it with `python -m src.cli experts --experts digits-smooth`" in fails(run, monkeypatch, capsys)
    early = fails("evaluate --run digits-ipc1-ast", monkeypatch, capsys)
    assert "make it with `python -m src.cli distill --run digits-ipc1-ast`" in early


def test_ipc_above_the_smallest_class(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    change(f"{RUN}.ipc", 2000)
    error = fails("prepare", monkeypatch, capsys)
    assert "runs.digits-ipc1-ast.ipc: ipc 2000 exceeds the smallest class" in error
    assert not Path("data").exists()


@pytest.mark.parametrize(
    "place, value, sentence",
    [
        (f"{RUN}.distill.batch_syn", 11, "runs.digits-ipc1-ast.distill.batch_syn: 11 exceeds the 10 synthetic images"),
        (f"{RUN}.cross", ["Deep"], "networks.Deep: network depth 4 halves a side of 8 pixels below 1: use depth 3 or less"),
        (f"{RUN}.cross", ["Odd"], "networks.Odd: norm 'group' makes 4 groups, but width 6 is not a multiple of 4"),
    ],
    ids=["batch", "too deep", "groups"],
)
def test_what_a_run_can_t_have_is_told_before_experts_are_trained(
    place: str, value: Any, sentence: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    change("networks.Deep", {"depth": 4, "width": 8})
    change("networks.Odd", {"depth": 1, "width": 6, "norm": "group"})
    change(place, value)
    assert sentence in fails("prepare", monkeypatch, capsys)
    assert not Path("data").exists()


def test_a_set_that_is_given_takes_no_real_images() -> None:
    """However few a class has."""
    given = {"initialisation": "given", "given": {"file": "theirs", "sha256": "0" * 64}, "iterations": 0}
    raw = YAML(typ="safe").load(Path("params.yaml").read_text(encoding="utf-8"))
    raw["distill"]["theirs"] = given
    raw["runs"] = {"theirs": {**raw["runs"]["digits-ipc1-ast"], "ipc": 2000, "distill": {"method": "theirs"}}}
    prepare.run(STORE, resolved.data_set(parse(raw), "digits"))
    assert STORE.load_statistics("digits").counts["train"]


def test_outside_the_repository_and_broken_yaml(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    Path("params.yaml").write_text("runs: [unclosed", encoding="utf-8")
    assert "params.yaml has 1 problem" in fails("report", monkeypatch, capsys)
    Path("params.yaml").unlink()
    assert "run the command in the repository's top folder" in fails("report", monkeypatch, capsys)


def test_stale_experts_are_refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Experts made with other settings than params.yaml has now must not be matched."""
    from src.stages import experts

    for place, value in {"count": 1, "epochs": 12, "gradient_penalty": 0.0}.items():
        change(f"experts.digits-smooth.{place}", value)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{Path.cwd() / 'mlflow.db'}")
    prepare.run(STORE, resolved.data_set(load(), "digits"))
    experts.run(STORE, resolved.buffer(load(), "digits-smooth"))
    before = load().experts["digits-smooth"].lr
    change("experts.digits-smooth.lr", 0.02)
    error = fails("distill --run digits-ipc1-ast", monkeypatch, capsys)
    assert f"experts.lr was {before}, is 0.02" in error
    assert "make it with `python -m src.cli experts --experts digits-smooth`" in error


def test_what_the_file_system_refuses_is_a_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Wherever it happens; an error that no disk is to blame for keeps its traceback."""

    def refuse(number: int) -> None:
        raise OSError(number, os.strerror(number), "data/x")

    monkeypatch.setattr(prepare, "run", lambda params, name: refuse(errno.ENOSPC))
    error = fails("prepare --dataset digits", monkeypatch, capsys)
    assert "Error: data/x can't be used (No space left on device): free space or permit access there" in error
    monkeypatch.setattr(prepare, "run", lambda params, name: refuse(errno.ENAMETOOLONG))
    error = fails("prepare --dataset digits", monkeypatch, capsys)
    assert "Error: data/x can't be used (File name too long): shorten its name" in error
    monkeypatch.setattr(prepare, "run", lambda params, name: refuse(errno.ENOTDIR))
    with pytest.raises(NotADirectoryError):
        cli.main()


def test_memory_that_ran_out_is_a_sentence(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """In torch's words on a CPU, on CUDA, and Python's own; any other error of torch keeps its traceback."""

    def refuse(error: Exception) -> None:
        raise error

    for error, words in (
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nMore"),
            " (CUDA out of memory. Tried to allocate 2 GiB.)",
        ),
        (MemoryError(), ""),
    ):
        monkeypatch.setattr(prepare, "run", lambda params, name, error=error: refuse(error))
        said = fails("prepare --dataset digits", monkeypatch, capsys)
        assert f"Error: memory ran out{words}: lower runtime.workers, runtime.memory_mib, batch sizes or" in said
    for size in ((2**55,), (2**40, 2**40)):
        monkeypatch.setattr(prepare, "run", lambda params, name, size=size: torch.empty(size))
        assert "Error: memory ran out (" in fails("prepare --dataset digits", monkeypatch, capsys)
    monkeypatch.setattr(prepare, "run", lambda params, name: torch.ones(2) @ torch.ones(3))
    with pytest.raises(RuntimeError, match="size"):
        cli.main()


AS_MODULE = "runpy.run_module('src.cli', run_name='__main__')"


def test_a_missing_environment_is_said() -> None:
    """As `dvc repro` meets it where the virtual environment is not active: Python without any package."""
    bare = [sys.executable, "-I", "-S", "-c", f"import sys, runpy; sys.path.insert(0, {str(ROOT)!r}); {AS_MODULE}"]
    done = subprocess.run(bare, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr == (
        f"Error: {sys.executable} has no package typer: activate the environment with `source .venv/bin/activate`, which "
        "`make repro` makes\n"
    )
