"""Format pt: plain tensors under the names that MTT's code and those built on it save and read.

MTT's distill.py saves images_best.pt and labels_best.pt: what its networks read, whitened under --zca and normalised else, and
classes in int64. Its successors (such as DATM) add lr_best.pt, and take soft labels as logits, of which they take the softmax.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from src.exchange import scripts, words
from src.exchange.exported import Exported, target
from src.store import files

WHAT = """`images_best.pt` (S, C, H, W) float32, `labels_best.pt` and `lr_best.pt` () float32 are plain tensors, as MTT's code
and those built on it save and read them; `torch.load(file, weights_only=True)` does. **The images are what networks read, not
pixels**{space}. Code that normalises real images by constants of its own (MTT's for CIFAR-10 has a std of 0.2023, 0.1994,
0.2010) has to take these instead, or its students are tested in another space. Labels are {labels}."""
SPACE = {
    "none": ": normalised by this training split's mean {mean} and std {std}",
    "zca": ": whitened by ZCA, fitted on this training split, with the mean and matrix in `space.pt`",
}
HARD = "classes, (S,) int64"
SOFT = "logarithms of probabilities, (S, K) float32: their softmax, which such code takes, is the probabilities"


def write(exported: Exported, folder: Path) -> None:
    """Fill a new or empty folder; raises UserError where it is not."""
    card = exported.described({"images_best": "what networks read", "labels_best": SOFT if exported.soft else HARD})
    numbers = {key: ", ".join(f"{number:.4f}" for number in card["dataset"][key]) for key in ("mean", "std")}
    what = WHAT.format(space=SPACE[card["whitening"]].format(**numbers), labels=SOFT if exported.soft else HARD)
    with target(folder) as place:
        torch.save(exported.inputs.contiguous(), place / "images_best.pt")
        torch.save(labels(exported), place / "labels_best.pt")
        torch.save(torch.tensor(exported.syn_lr), place / "lr_best.pt")
        scripts.add(exported, "pt", card, place)
        text = words.readme(card, len(exported.pixels), words.use(card, what), picture=None)
        files.write_text(place / "README.md", text)


def labels(exported: Exported) -> Tensor:
    """(S,) classes, or (S, K) logits whose softmax is the probabilities; 0 becomes float32's smallest normal number."""
    if not exported.soft:
        return exported.labels.clone()
    return exported.labels.clamp(min=torch.finfo(torch.float32).tiny).log()
