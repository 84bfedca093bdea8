"""export: a run's synthetic set in a folder of its own, for use elsewhere. No stage of the pipeline: it makes no artifact.

The tensors are pixels, whatever whitening they were distilled under, so that anybody can normalise them in their own way. A
folder in data/released is one that `evaluate --released` scores.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from src.ground.errors import UserError
from src.pages import page, pictures
from src.pages.page import Accuracy
from src.process import progress
from src.settings.resolved import Run
from src.stages.evaluate import SPLITS
from src.stages.records import synthetic_settings
from src.store import files, tensors
from src.store.store import Store, remake
from src.store.values import Statistics

USE = """`synthetic.safetensors` holds `pixels` (S, C, H, W), 0 black and 1 white but not bound to either, `labels` and
`syn_lr`, the students' learning rate; `set.json` says how they were made and how students are trained on them. Normalise the
pixels as your real images are, then train:

```python
from safetensors.torch import load_file

synthetic = load_file("synthetic.safetensors")
pixels = synthetic["pixels"].float()
```"""


def run(store: Store, run: Run, folder: Path, half: bool = False) -> None:
    """Write a run to `folder`: its tensors, a picture file an image, and what there is to know about them.

    With `half` the pixels are float16, half the size: from 0 to 1 they are off by a sixteenth of a step of 8 bits at most.
    """
    name = run.name
    tensors.check_record(store.synthetic_file(name), synthetic_settings(run), remake("distill", name))
    synthetic, statistics = store.load_synthetic(name), store.load_statistics(run.dataset.name)
    if folder.exists() and (not folder.is_dir() or not files.is_empty(folder)):
        raise UserError(f"--to {folder}: is there already and is not an empty folder: name another one, or delete it")
    card = _card(store, run, statistics, synthetic.syn_lr.item(), len(synthetic.labels), half)
    with files.filled(folder) as place:
        store.copy_synthetic(name, synthetic, place / "synthetic.safetensors", half)
        _save_pictures(place, synthetic.pixels, synthetic.classes)
        Image.fromarray(pictures.grid(synthetic.pixels, synthetic.classes)).save(place / "images.png")
        files.write_json(place / "set.json", card)
        files.write_text(place / "README.md", _words(card, len(synthetic.labels)))
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


def _card(store: Store, run: Run, statistics: Statistics, syn_lr: float, count: int, half: bool) -> dict[str, Any]:
    """What a reader of the tensors needs: their meaning, the students' recipe and, where it is measured, the accuracy."""
    name, dataset, metrics = run.name, run.dataset, store.metrics_file(run.name)
    shape = (count, statistics.channels, statistics.size, statistics.size)
    return {
        "run": name,
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
        "accuracy": files.read_json(metrics, remake("evaluate", name)) if metrics.exists() else None,
    }


def _settings(run: Run, statistics: Statistics) -> dict[str, Any]:
    """The sections of params.yaml for this run alone, tied to the very images that it was distilled from."""
    dataset, buffer = run.dataset.settings.model_copy(update={"sha256": statistics.source_sha256}), run.buffer
    own: dict[str, Any] = {
        "dataset": run.dataset.name,
        "network": run.network,
        "experts": None if buffer is None else buffer.name,
    }
    own |= {"ipc": run.ipc, "distill": {"method": run.method}, "evaluate": run.protocol, "cross": []}
    return {
        "seed": run.seed,
        "prepare": {run.dataset.name: dataset.model_dump(mode="json", exclude={"path"})},
        "networks": {run.network: run.spec.model_dump(mode="json")},
        "experts": {} if buffer is None else {buffer.name: buffer.settings.model_dump(mode="json")},
        "distill": {run.method: run.distillation.model_dump(mode="json")},
        "evaluate": {run.protocol: run.evaluation.model_dump(mode="json")},
        "runs": {run.name: own},
    }


def _words(card: dict[str, Any], count: int) -> str:
    """The card for people."""
    run, dataset, accuracy = card["run"], card["dataset"], card["accuracy"]
    settings = card["settings"]["runs"][run]
    lines = [
        f"# {run}",
        "",
        f"{count} images for {len(dataset['classes'])} classes of `{dataset['name']}`, "
        f"{'distilled' if card['distilled'] else 'chosen'} by `{settings['distill']['method']}` for `{settings['network']}`: "
        f"{', '.join(dataset['classes'])}.",
        "",
        "![The images](images.png)",
    ]
    if accuracy is not None:
        val, test = (page.score(Accuracy(accuracy[f"{s}_accuracy_mean"], accuracy[f"{s}_accuracy_std"])) for s in SPLITS)
        lines += ["", f"Fresh students of that network reach {test} % on the test split ({val} % on the validation split)."]
    return "\n".join([*lines, "", USE, ""])
