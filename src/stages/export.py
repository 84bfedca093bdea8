"""export: runs' synthetic sets in a folder of their own, for use elsewhere. No stage of the pipeline: it makes no artifact.

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
from src.exchange.formats.safetensors import told
from src.maths.pixels import Whitening
from src.pages import pictures
from src.process import progress
from src.settings import resolved
from src.settings.resolved import Run
from src.stages import export_tuples
from src.stages.records import check_synthetic, prepared
from src.stages.results import measured
from src.store import files
from src.store.store import Store
from src.store.values import Statistics


def run(store: Store, run: Run, folder: Path, half: bool = False) -> None:
    """Write a run to `folder`: its tensors, a picture file an image, and what there is to know about them.

    With `half` the pixels are float16, half the size: from 0 to 1 they are off by a sixteenth of a step of 8 bits at most.
    """
    if run.dataset.tuples:
        if half:
            resolved.check_images([run], "--half", "leave it out")
        export_tuples.run(store, run, folder)
        return
    exported, synthetic = gathered(store, run, half), store.load_synthetic(run.name)
    with target(folder) as place:
        store.copy_synthetic(run.name, synthetic, place / "synthetic.safetensors", half)
        save_pictures(exported, place)
        Image.fromarray(pictures.grid(exported.pixels, exported.labels)).save(place / "images.png")
        files.write_json(place / "set.json", exported.card)
        files.write_text(place / "README.md", words.readme(dict(exported.card), len(exported.pixels), told(exported)))
    progress.say(f"{run.name}: {len(exported.pixels)} images in {folder}")


def run_as(store: Store, runs: Sequence[Run], folder: Path, form: str, half: bool = False) -> None:
    """Write one run, or several where the format holds several, to `folder` in a format of src/exchange/formats."""
    writing.check(form)
    resolved.check_images(runs, f"--format {form}", "leave it out")
    sets = [gathered(store, one, half) for one in runs]
    if len(sets) == 1:
        writing.write(form, sets[0], folder)
    else:
        writing.write_many(form, sets, folder)
    for exported in sets:
        progress.say(f"{exported.name}: {len(exported.pixels)} images in {folder}, as {form}")


def gathered(store: Store, run: Run, half: bool = False) -> Exported:
    """All that there is to know about the synthetic set of a run. Raises ArtifactError where it was made differently."""
    path, dataset = store.synthetic_file(run.name), run.dataset.name
    check_synthetic(store, run)
    synthetic, statistics = store.load_synthetic(run.name), prepared(store, run.dataset, "train")
    space, syn_lr = store.load_space(dataset), synthetic.syn_lr.item()
    card = _card(store, run, statistics, syn_lr, len(synthetic.labels), half)
    return Exported(
        name=run.name,
        pixels=synthetic.pixels,
        labels=synthetic.labels,
        syn_lr=syn_lr,
        classes=statistics.classes,
        dataset=dataset,
        mean=torch.tensor(statistics.mean),
        std=torch.tensor(statistics.std),
        network=run.spec,
        evaluation=run.evaluation,
        whitening=space if isinstance(space, Whitening) else None,
        accuracy=card["accuracy"],
        card=card,
        record=record_of(path),
        half=half,
    )


def _card(store: Store, run: Run, statistics: Statistics, syn_lr: float, count: int, half: bool) -> dict[str, Any]:
    """What a reader of the tensors needs: their meaning, the students' recipe and, where it is measured, the accuracy."""
    dataset = run.dataset
    shape = (count, statistics.channels, statistics.size, statistics.size)
    return {
        "run": run.name,
        "dataset": {"name": dataset.name, "classes": statistics.classes, "mean": statistics.mean, "std": statistics.std},
        "tensors": {
            "pixels": f"{shape} {'float16' if half else 'float32'}, 0 black, 1 white, not bound to either",
            "labels": f"({count},) int64, indices of the classes; or ({count}, K) float32, their probabilities",
            "syn_lr": "() float32, the students' learning rate",
        },
        "syn_lr": syn_lr,
        "distilled": run.distillation.iterations > 0,
        "whitening": dataset.settings.whitening,
        "network": run.spec.model_dump(),
        "evaluation": run.evaluation.model_dump(mode="json"),
        "settings": _settings(run, statistics),
        "accuracy": measured(store, run),
    }


def _settings(run: Run, statistics: Statistics) -> dict[str, Any]:
    """The sections of params.yaml for this run and those it begins with, tied to the very images that it was distilled from."""
    dataset = run.dataset.settings.model_copy(update={"sha256": statistics.source_sha256})
    found: dict[str, Any] = {"seed": run.seed, "prepare": {run.dataset.name: dataset.model_dump(mode="json", exclude={"path"})}}
    found |= {section: {} for section in ("networks", "experts", "distill", "evaluate", "runs")}
    for number, one in enumerate((run, *run.initials)):
        # of its own for each, as two may share a method with other values
        method = f"{run.method[:50]}-initial-{number}" if number else run.method
        own = {"dataset": one.dataset.name, "network": one.network, "experts": one.buffer and one.buffer.name, "ipc": one.ipc}
        found["networks"][one.network] = one.spec.model_dump(mode="json")
        if one.buffer is not None:
            found["experts"][one.buffer.name] = one.buffer.settings.model_dump(mode="json")
        found["distill"][method] = one.distillation.model_dump(mode="json")
        found["evaluate"][one.protocol] = one.evaluation.model_dump(mode="json")
        found["runs"][one.name] = {**own, "distill": {"method": method}, "evaluate": one.protocol, "cross": []}
    return found
