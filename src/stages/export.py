"""export: a run's synthetic set in a folder of its own, for use elsewhere. No stage of the pipeline: it makes no artifact.

The tensors are pixels, whatever whitening they were distilled under, so that anybody can normalise them in their own way.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from src.ground.errors import UserError
from src.ground.params import Params
from src.io import artifacts, files, progress
from src.io.artifacts import Statistics
from src.stages.records import synthetic_settings


def run(params: Params, name: str, folder: Path) -> None:
    """Write the run `name` to `folder`: its tensors, a picture file an image, and what there is to know about them."""
    path, dataset = artifacts.synthetic_file(name), params.run(name).dataset
    artifacts.check_record(path, synthetic_settings(params, name), artifacts.remake("distill", name))
    synthetic, statistics = artifacts.load_synthetic(name), artifacts.load_statistics(dataset)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"--to {folder}: is there already and is not an empty folder: name another one, or delete it")
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(path, folder / "synthetic.safetensors")
    _save_pictures(folder, synthetic.pixels, synthetic.classes)
    files.write_json(folder / "set.json", _card(params, name, statistics, synthetic.syn_lr.item(), len(synthetic.labels)))
    progress.say(f"{name}: {len(synthetic.labels)} images in {folder}")


def _save_pictures(folder: Path, pixels: Tensor, labels: Tensor) -> None:
    """PNG files, a folder a class by its index; what leaves [0, 1] is cut off there, and only there."""
    whole = (pixels.clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    numbers: dict[int, int] = {}
    for image, label in zip(whole, labels.tolist(), strict=True):
        number = numbers[label] = numbers.get(label, -1) + 1
        place = folder / "images" / f"{label:04d}" / f"{number:04d}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.squeeze(-1) if image.shape[-1] == 1 else image).save(place)


def _card(params: Params, name: str, statistics: Statistics, syn_lr: float, count: int) -> dict[str, Any]:
    """What a reader of the tensors needs: their meaning, the students' recipe and, where it is measured, the accuracy."""
    run, metrics = params.runs[name], artifacts.metrics_file(name)
    shape = (count, statistics.channels, statistics.size, statistics.size)
    return {
        "run": name,
        "dataset": {"name": run.dataset, "classes": statistics.classes, "mean": statistics.mean, "std": statistics.std},
        "tensors": {
            "pixels": f"{shape} float32, 0 black, 1 white, not bound to either",
            "labels": f"({count},) int64, indices of the classes; or ({count}, K) float32, their probabilities",
            "syn_lr": "() float32, the students' learning rate",
        },
        "syn_lr": syn_lr,
        "distilled": params.distillations[name].iterations > 0,
        "whitening": params.prepare[run.dataset].whitening,
        "network": params.networks[run.network].model_dump(),
        "evaluation": params.evaluate[run.evaluate].model_dump(mode="json"),
        "accuracy": files.read_json(metrics, artifacts.remake("evaluate", name)) if metrics.exists() else None,
    }
