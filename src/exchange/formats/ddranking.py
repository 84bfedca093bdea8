"""Format ddranking: tensors as DD-Ranking's evaluator takes them, and a script that scores them with that package.

Source: ddranking 0.2.0 (arXiv 2505.13300). It reads real images of data sets that it knows, all in colour, normalised by
constants of its own or whitened by a ZCA that it fits on all training images; synthetic images have to be of that space.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from src.exchange import scripts, words
from src.exchange.exported import Exported, target
from src.ground.errors import UserError
from src.maths.pixels import Normalisation
from src.settings.networks import ConvNet
from src.store import files

CIFAR = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SCRIPT = "score.py"
WHAT = """`images.pt` (S, C, H, W) float32, `labels.pt` and `lr.pt` () float32 are what the package `ddranking` takes:
{space}. Labels are {labels}. `score.py` scores the set with that package:

```sh
pip install ddranking==0.2.0
python score.py --data FOLDER    # of the real {dataset}, {layout}; --help for the rest
```

DD-Ranking trains a ConvNet of its own, `{model}` of width 128: on this set, on random real images, whose learning rate it
searches, and on all real images. It says how far this set stands above the ones and below the others. Half-way it takes a tenth
of the learning rate, it draws from all six kinds of DSA where the run's protocol has any, and it counts each network's best
epoch on the test split."""
NORMALISED = "normalised by the package's constants for {dataset}, mean {mean} and std {std}"
WHITENED = "whitened, by the run's own ZCA; the package fits its own to all training images, of which this one saw {share}"
HARD, SOFT = "classes, (S,) int64", "probabilities, (S, K) float32"


@dataclass(frozen=True)
class Known:
    """A data set of DD-Ranking: its name there, its shape, and the constants that its pixels are normalised by."""

    name: str
    size: int
    classes: int
    constants: tuple[tuple[float, ...], tuple[float, ...]]
    layout: str = "as torchvision keeps it"


KNOWN: Mapping[str, Known] = {  # by the name of the source here
    "cifar10": Known("CIFAR10", 32, 10, CIFAR),
    "cifar100": Known("CIFAR100", 32, 100, CIFAR),
    "tiny_imagenet": Known("TinyImageNet", 64, 200, IMAGENET, "with a folder a class in each of train and val"),
}


def write(exported: Exported, folder: Path) -> None:
    """Fill a new or empty folder; raises UserError where it is not, or where the package can't score the set."""
    known, about = _known(exported), _about(exported)
    images = (
        exported.inputs if about["use_zca"] else Normalisation(*map(torch.tensor, known.constants)).normalise(exported.pixels)
    )
    card = exported.described({"images": "what DD-Ranking's networks read", "labels": _labels(exported)}) | {"ddranking": about}
    with target(folder) as place:
        torch.save(images.contiguous(), place / "images.pt")
        torch.save(exported.labels.clone(), place / "labels.pt")
        torch.save(torch.tensor(exported.syn_lr), place / "lr.pt")
        scripts.add(exported, "ddranking", card, place)
        template = (scripts.TEMPLATES / "score_ddranking.py").read_text(encoding="utf-8")
        files.write_text(place / SCRIPT, template)
        text = words.use(card, _what(exported, about), pixels=False)
        files.write_text(place / "README.md", words.readme(card, len(images), text, picture=None))


def _known(exported: Exported) -> Known:
    known = KNOWN.get(exported.source)
    _, channels, size, _ = exported.pixels.shape
    if known is None or (channels, size, len(exported.classes)) != (3, known.size, known.classes):
        names = ", ".join(f"{source} ({one.classes} classes of 3x{one.size}x{one.size})" for source, one in KNOWN.items())
        raise UserError(
            f"DD-Ranking can't score {exported.name}, {len(exported.classes)} classes of {channels}x{size}x{size} of "
            f"{exported.source}: it takes {names}; choose another --format"
        )
    return known


def _about(exported: Exported) -> dict[str, Any]:
    """The evaluator's arguments that follow from the run."""
    known, protocol = KNOWN[exported.source], exported.evaluation
    counts = exported.indices.bincount(minlength=known.classes)
    if counts.unique().numel() != 1:
        least, most = int(counts.min()), int(counts.max())
        raise UserError(
            f"DD-Ranking takes as many images of each class, and {exported.name} has {least} to {most}: choose another --format"
        )
    return {
        "dataset": known.name,
        "ipc": int(counts[0]),
        "model_name": _model(exported),
        "use_zca": exported.whitening is not None,
        "mean": list(known.constants[0]),
        "std": list(known.constants[1]),
        "data_aug_func": "dsa" if protocol.augmentation else None,
        "num_epochs": protocol.epochs,
        "num_eval": protocol.students,
        "weight_decay": protocol.weight_decay,
        "momentum": protocol.momentum,
        "batch_size": protocol.batch_size,
    }


def _labels(exported: Exported) -> str:
    return SOFT if exported.soft else HARD


def _model(exported: Exported) -> str:
    """DD-Ranking's network that is nearest to the run's: a ConvNet of its depth and norm, width 128."""
    network = exported.network
    if not isinstance(network, ConvNet):
        return "ConvNet-3"
    return f"ConvNet-{network.depth}" + ("-BN" if network.norm == "batch" else "")


def _what(exported: Exported, about: Mapping[str, Any]) -> str:
    cut = exported.card.get("settings", {}).get("prepare", {}).get(exported.dataset, {})
    share = None if cut.get("train_images") is not None else cut.get("val_fraction")
    seen = "a part" if share is None else f"{100 * (1 - share):.0f} %"
    mean, std = (", ".join(map(str, about[key])) for key in ("mean", "std"))
    space = WHITENED.format(share=seen) if about["use_zca"] else NORMALISED.format(dataset=about["dataset"], mean=mean, std=std)
    layout = KNOWN[exported.source].layout
    names = {"dataset": about["dataset"], "model": about["model_name"], "layout": layout}
    return WHAT.format(space=space, labels=_labels(exported), **names)
