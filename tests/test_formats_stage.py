"""Runs that leave in other formats, from their artifacts; and the released set, whose script reaches what `evaluate` does."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from src.exchange import writing
from src.exchange.exported import Exported
from src.ground.errors import UserError
from src.settings import resolved
from src.settings.networks import ConvNet
from src.settings.params import Params, parse
from src.settings.protocols import Protocol
from src.stages import export as exporting
from src.stages import prepare
from src.store.store import read_synthetic
from tests import small_run
from tests.imports import ROOT
from tests.small_run import STORE

RELEASED = ROOT / "data" / "released" / "digits-ipc1-ast"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Params]:
    """Inside a folder where two runs are distilled from whitened images and evaluated."""
    run = {"dataset": "digits", "network": "D2", "experts": None, "ipc": 1, "evaluate": "mtt", "distill": {"method": "random"}}
    raw: dict[str, Any] = {
        "seed": 0,
        "runtime": {"device": "cpu", "threads": 1, "workers": 1},
        "prepare": {"digits": {"source": "digits", "whitening": "zca"}},
        "networks": {"D2": {"depth": 2, "width": 8}},
        "experts": {},
        "distill": {"random": {"initialisation": "random", "iterations": 0}},
        "evaluate": {"mtt": {"students": 2, "epochs": 3}},
        "report": {"title": "Test"},
        "runs": {"one": run, "two": {**run, "ipc": 2}},
    }
    with small_run.made(tmp_path_factory.mktemp("formats"), raw) as params:
        yield params


def test_a_run_in_today_s_format_is_what_export_writes(made: Params, tmp_path: Path) -> None:
    """And the script, with the whitening that it needs."""
    exporting.run(STORE, resolved.run(made, "one"), tmp_path / "before")
    exporting.run_as(STORE, [resolved.run(made, "one")], tmp_path / "now", "safetensors")
    before, now = (
        {p.relative_to(top): p for p in top.rglob("*") if p.is_file()} for top in (tmp_path / "before", tmp_path / "now")
    )
    assert {str(path) for path in now.keys() - before.keys()} == {"train_on_it.py", "space.pt"}
    different = {str(path) for path in before if before[path].read_bytes() != now[path].read_bytes()}
    assert different == {"README.md"}
    words = [(tmp_path / name / "README.md").read_text(encoding="utf-8").rstrip() for name in ("before", "now")]
    assert words[1].startswith(words[0])
    assert "labels`\n(S,), indices" in words[0] and "trained on\nwhitened pixels" in words[0]


def test_a_whitened_run_is_what_its_networks_read(made: Params, tmp_path: Path) -> None:
    exporting.run_as(STORE, [resolved.run(made, "one")], tmp_path / "pt", "pt")
    images = torch.load(tmp_path / "pt" / "images_best.pt", weights_only=True)
    synthetic, space = STORE.load_synthetic("one"), STORE.load_space("digits")
    assert torch.equal(images, space.normalise(synthetic.pixels))
    kept = torch.load(tmp_path / "pt" / "space.pt", weights_only=True)
    assert torch.allclose((synthetic.pixels.flatten(1) - kept["mean"]) @ kept["matrix"], images.flatten(1))
    assert "whitened by ZCA" in (tmp_path / "pt" / "README.md").read_text(encoding="utf-8")


def test_runs_leave_together_for_the_hub(made: Params, tmp_path: Path) -> None:
    exporting.run_as(STORE, [resolved.run(made, name) for name in ("one", "two")], tmp_path / "hub", "huggingface")
    assert {path.parent.name for path in (tmp_path / "hub").rglob("*.parquet")} == {"one", "two"}
    for form, runs, sentence in (
        ("pt", ["one", "two"], "holds one set"),
        ("ddranking", ["one"], "can't score one"),
        ("tf", [], "none"),
    ):
        with pytest.raises(UserError, match=sentence):
            exporting.run_as(STORE, [resolved.run(made, name) for name in runs], tmp_path / "other", form)
    assert not (tmp_path / "other").exists()


def released() -> Exported:
    card = json.loads((RELEASED / "set.json").read_text(encoding="utf-8"))
    found, about = read_synthetic(RELEASED / "synthetic.safetensors", ""), card["dataset"]
    return Exported(
        *("digits-ipc1-ast", found.pixels, found.labels, found.syn_lr.item(), tuple(about["classes"]), "digits"),
        *(torch.tensor(about["mean"]), torch.tensor(about["std"])),
        *(ConvNet(**card["network"]), Protocol(**card["evaluation"]), None, card["accuracy"], card),
    )


@pytest.mark.slow
@pytest.mark.parametrize("form", ["safetensors", "pt", "huggingface", "images"])
def test_students_of_the_script_reach_what_evaluate_measured(
    form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the same test split, within two standard deviations; as do those of pictures, a third of whose numbers is cut."""
    exported = released()
    monkeypatch.chdir(tmp_path)
    settings = parse({**exported.card["settings"], "runtime": {"device": "cpu"}}, "set.json")
    prepare.run(STORE, resolved.data_set(settings, "digits"))
    split, white = STORE.load_split("digits", "test"), STORE.load_statistics("digits").pixel_max
    np.savez("test.npz", images=split.images.numpy(), labels=split.labels.numpy())
    writing.write(form, exported, Path("out"))
    words = ["out/train_on_it.py", "--test", "test.npz", "--pixel-max", str(white), "--device", "cpu"]
    said = subprocess.run([sys.executable, *words], capture_output=True, text=True, check=True).stdout.splitlines()[-1]
    mean = float(said.removeprefix("test accuracy ").split(" ± ")[0])
    assert exported.accuracy is not None
    expected, std = (100 * exported.accuracy[f"test_accuracy_{figure}"] for figure in ("mean", "std"))
    assert abs(mean - expected) < 2 * std
