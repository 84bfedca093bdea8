"""Reader of a folder for DD-Ranking, for train_on_it.py."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor


def read(folder: Path, normalise: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    """What students read, (S, C, H, W), and labels: classes (S,) or probabilities (S, K).

    The file holds images as DD-Ranking's own networks read them: whitened, or normalised by its constants for the data set.
    """
    about = json.loads((folder / "set.json").read_text(encoding="utf-8"))["ddranking"]
    images, labels = (torch.load(folder / f"{name}.pt", weights_only=True) for name in ("images", "labels"))
    if not about["use_zca"]:
        mean, std = (torch.tensor(about[key]).view(1, -1, 1, 1) for key in ("mean", "std"))
        images = normalise(images * std + mean)
    return images, labels
