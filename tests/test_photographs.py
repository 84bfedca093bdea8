"""Photographs of 64x64 and 128x128 pixels, from files to a report: real colour images through every stage."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_images

from src.settings import resolved
from src.settings.params import Params, parse
from src.stages import distill, evaluate, experts, prepare, report
from tests.small_run import STORE

PATCHES = 24  # a class
# top, bottom, left and right edge of what a class shows, in two photographs of 427 x 640 pixels: china.jpg, flower.jpg
SCENES = {
    "sky": (0, (0, 150, 0, 640)),
    "temple": (0, (200, 427, 0, 640)),
    "petals": (1, (60, 360, 180, 460)),
    "leaves": (1, (0, 427, 470, 640)),
}


def photographs(folder: Path, seed: int = 0) -> None:
    """An image folder of patches of several sizes, all above 96 pixels a side."""
    draws, scenes = np.random.default_rng(seed), load_sample_images().images
    for name, (scene, (top, bottom, left, right)) in SCENES.items():
        (folder / name).mkdir(parents=True)
        for number in range(PATCHES):
            side = int(draws.integers(96, 140))
            y, x = int(draws.integers(top, bottom - side)), int(draws.integers(left, right - side))
            patch = Image.fromarray(scenes[scene][y : y + side, x : x + side])
            patch.save(folder / name / f"{number}.{'png' if number % 2 else 'jpg'}")


def settings(size: int, depth: int) -> Params:
    common = {"dataset": "scenes", "network": "net"}
    raw: dict[str, Any] = {
        "seed": 0,
        "runtime": {"device": "cpu", "threads": 2, "workers": 1, "compile": "off"},
        "prepare": {"scenes": {"source": "photographs", "size": size}},
        "networks": {"net": {"depth": depth, "width": 16}},
        "experts": {"few": {**common, "count": 2, "epochs": 8, "batch_size": 16, "lr": 0.02, "momentum": 0.9}},
        "distill": {
            "ast": {"initialisation": "random", "syn_steps": 6, "inner_momentum": 0.9, "snapshot_every": 4},
            "real": {"initialisation": "random", "iterations": 0},
        },
        "evaluate": {"short": {"students": 3, "epochs": 300, "augmentation": ["flip", "crop"]}},
        "report": {"title": "Scenes"},
        "runs": {
            "scenes-ast": {
                **common, "experts": "few", "ipc": 3, "evaluate": "short",
                "distill": {"method": "ast", "iterations": 8, "lr_img": 10.0, "max_start_epoch": 3, "lr_init": 0.02},
            },
            "scenes-random": {
                **common, "experts": "few", "ipc": 3, "evaluate": "short", "distill": {"method": "real", "lr_init": 0.02},
            },
        },
    }  # fmt: skip
    return parse(raw)


@pytest.mark.slow
@pytest.mark.parametrize(("size", "depth"), [(64, 4), (128, 5)])
def test_photographs_go_through_every_stage(size: int, depth: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    photographs(tmp_path / "photographs")
    params = settings(size, depth)
    prepare.run(STORE, resolved.data_set(params, "scenes"))
    statistics = STORE.load_statistics("scenes")
    assert (statistics.channels, statistics.size, statistics.classes) == (3, size, tuple(sorted(SCENES)))
    experts.run(STORE, resolved.buffer(params, "few"))
    for name in params.runs:
        distill.run(STORE, resolved.run(params, name))
        evaluate.run(STORE, resolved.run(params, name))
    report.run(STORE, resolved.pipeline(params))

    start, end = STORE.load_snapshots("scenes-ast").pixels[[0, -1]]
    assert start.shape == (12, 3, size, size)
    assert not start.equal(end)
    assert STORE.load_snapshots("scenes-random").pixels.numel() == 0
    accuracies = [json.loads(STORE.metrics_file(name).read_text())["test_accuracy_mean"] for name in params.runs]
    assert min(accuracies) > 0.4  # chance is 0.25
    assert all(name in STORE.report_file("html").read_text(encoding="utf-8") for name in params.runs)
