"""Reader of a folder of PNG files, for train_on_it.py."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor


def read(folder: Path, normalise: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    """What students read, (S, C, H, W), and labels: classes (S,) or probabilities (S, K); in the order of labels.csv."""
    import csv

    from PIL import Image

    with (folder / "labels.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    images = []
    for row in rows:
        with Image.open(folder / row["file"]) as image:
            flat = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
            images.append(flat.reshape(image.height, image.width, -1).permute(2, 0, 1) / 255)
    soft = [key for key in rows[0] if key.startswith("p_")]
    if soft:
        return normalise(torch.stack(images)), torch.tensor([[float(row[key]) for key in soft] for row in rows])
    return normalise(torch.stack(images)), torch.tensor([int(row["class"]) for row in rows])
