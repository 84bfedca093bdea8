"""export: a run's synthetic set in a folder of its own, for use elsewhere. No stage of the pipeline: it makes no artifact.

The tensors are pixels, whatever whitening they were distilled under, so that anybody can normalise them in their own way. A
folder in data/released is one that `evaluate --released` scores. Other formats are those of src/exchange/formats.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from src.exchange import words, writing
from src.exchange.exported import Exported, record_of, target
from src.exchange.formats.images import save_pictures
from src.exchange.formats.safetensors import WHAT
from src.ground.params import Params
from src.io import artifacts, files, pictures, progress
from src.io.artifacts import Statistics
from src.maths.pixels import Whitening
from src.stages.records import synthetic_settings


def run(params: Params, name: str, folder: Path, half: bool = False) -> None:
    """Write the run `name` to `folder`: its tensors, a picture file an image, and what there is to know about them.

    With `half` the pixels are float16, half the size: from 0 to 1 they are off by a sixteenth of a step of 8 bits at most.
    """
    exported, synthetic = gathered(params, name, half), artifacts.load_synthetic(name)
    card = _card(params, name, artifacts.load_statistics(exported.dataset), exported.syn_lr, len(exported.pixels), half)
    with target(folder) as place:
        artifacts.copy_synthetic(name, synthetic, place / "synthetic.safetensors", half)
        save_pictures(exported, place)
        Image.fromarray(pictures.grid(exported.pixels, exported.indices)).save(place / "images.png")
        files.write_json(place / "set.json", card)
        files.write_text(place / "README.md", _words(card, len(exported.pixels)))
    progress.say(f"{name}: {len(exported.pixels)} images in {folder}")


def run_as(params: Params, names: Sequence[str], folder: Path, form: str, half: bool = False) -> None:
    """Write one run, or several where the format holds several, to `folder` in a format of src/exchange/formats."""
    writing.check(form)
    sets = [gathered(params, name, half) for name in names]
    if len(sets) == 1:
        writing.write(form, sets[0], folder)
    else:
        writing.write_many(form, sets, folder)
    for one in sets:
        progress.say(f"{one.name}: {len(one.pixels)} images in {folder}, as {form}")


def gathered(params: Params, name: str, half: bool = False) -> Exported:
    """All that there is to know about the synthetic set of a run. Raises ArtifactError where it was made differently."""
    path, dataset = artifacts.synthetic_file(name), params.run(name).dataset
    artifacts.check_record(path, synthetic_settings(params, name), artifacts.remake("distill", name))
    synthetic, statistics = artifacts.load_synthetic(name), artifacts.load_statistics(dataset)
    space, syn_lr = artifacts.load_space(dataset), synthetic.syn_lr.item()
    card = _card(params, name, statistics, syn_lr, len(synthetic.labels), half)
    return Exported(
        name=name,
        pixels=synthetic.pixels,
        labels=synthetic.labels,
        syn_lr=syn_lr,
        classes=statistics.classes,
        dataset=dataset,
        mean=torch.tensor(statistics.mean),
        std=torch.tensor(statistics.std),
        network=params.networks[params.runs[name].network],
        evaluation=params.evaluate[params.runs[name].evaluate],
        whitening=space if isinstance(space, Whitening) else None,
        accuracy=_accuracy(name),
        card=card,
        record=record_of(path),
        half=half,
    )


def _card(params: Params, name: str, statistics: Statistics, syn_lr: float, count: int, half: bool) -> dict[str, Any]:
    """What a reader of the tensors needs: their meaning, the students' recipe and, where it is measured, the accuracy."""
    run = params.runs[name]
    shape = (count, statistics.channels, statistics.size, statistics.size)
    return {
        "run": name,
        "dataset": {"name": run.dataset, "classes": statistics.classes, "mean": statistics.mean, "std": statistics.std},
        "tensors": {
            "pixels": f"{shape} {'float16' if half else 'float32'}, 0 black, 1 white, not bound to either",
            "labels": f"({count},) int64, indices of the classes; or ({count}, K) float32, their probabilities",
            "syn_lr": "() float32, the students' learning rate",
        },
        "syn_lr": syn_lr,
        "distilled": params.distillations[name].iterations > 0,
        "whitening": params.prepare[run.dataset].whitening,
        "network": params.networks[run.network].model_dump(),
        "evaluation": params.evaluate[run.evaluate].model_dump(mode="json"),
        "settings": _settings(params, name, statistics),
        "accuracy": _accuracy(name),
    }


def _accuracy(name: str) -> dict[str, float] | None:
    """As `evaluate` found it; None before that."""
    path = artifacts.metrics_file(name)
    return dict(files.read_json(path, artifacts.remake("evaluate", name))) if path.exists() else None


def _settings(params: Params, name: str, statistics: Statistics) -> dict[str, Any]:
    """The sections of params.yaml for this run alone, tied to the very images that it was distilled from."""
    run = params.runs[name]
    dataset = params.prepare[run.dataset].model_copy(update={"sha256": statistics.source_sha256})
    method = run.distill.method
    return {
        "seed": params.seed,
        "prepare": {run.dataset: dataset.model_dump(mode="json", exclude={"path"})},
        "networks": {run.network: params.networks[run.network].model_dump(mode="json")},
        "experts": {} if run.experts is None else {run.experts: params.experts[run.experts].model_dump(mode="json")},
        "distill": {method: params.distillations[name].model_dump(mode="json")},
        "evaluate": {run.evaluate: params.evaluate[run.evaluate].model_dump(mode="json")},
        "runs": {name: {**run.model_dump(mode="json"), "distill": {"method": method}, "cross": []}},
    }


def _words(card: dict[str, Any], count: int) -> str:
    """The card for people."""
    return words.readme(card, count, WHAT)
