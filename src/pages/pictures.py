"""Pictures and figures of synthetic sets, experts and curves, for MLflow.

matplotlib is imported by the figures alone: it takes longer to import than a stage's own work may take.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from src.pages import levels
from src.pages.sheets import shown_of_each

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SIDE = 48  # pixels that an image is enlarged to, at least
MOST_COLUMNS = 10
GAP = 2  # white pixels around every image


def grid(pixels: Tensor, labels: Tensor, square: bool = False) -> np.ndarray:
    """One picture (H, W, 3) of uint8 of pixels (S, C, h, w), with the contrast of levels.py; labels are classes (S,), or
    probabilities (S, K).

    A row a class, of its first ten images, where all classes have equally many of them, and more than one. Otherwise images
    follow each other, class after class, in rows of ten, or as a square where the picture's place is `square`: all of them,
    unless they are more than ten a class, so that none is left out whose soft label is another class's by now.
    """
    soft = labels.is_floating_point()
    indices, classes = (labels.argmax(dim=1), labels.shape[1]) if soft else (labels, int(labels.max()) + 1)
    most = shown_of_each(indices, classes, MOST_COLUMNS)
    members = [(indices == k).nonzero().squeeze(1)[:most] for k in indices.unique()]
    found, (fewest, *more) = torch.cat(members), sorted({len(one) for one in members})
    columns = math.ceil(len(found) ** 0.5) if square else MOST_COLUMNS
    if fewest > 1 and not more:
        columns = fewest
    times = -(-SIDE // pixels.shape[-1])
    enlarged = levels.shown(pixels[found]).repeat_interleave(times, dim=-1).repeat_interleave(times, dim=-2)
    array: np.ndarray = (_laid_out(enlarged, columns) * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    return array


def save(image: Tensor, path: Path) -> None:
    """A picture file of an image (C, H, W); pixels outside [0, 1] are cut off."""
    array = (image.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    Image.fromarray(array[..., 0] if array.shape[2] == 1 else array).save(path)


def _laid_out(images: Tensor, columns: int) -> Tensor:
    """Images (S, C, h, w) in rows of so many, in colour, with white between and around them: (3, H, W)."""
    height, width = (side + GAP for side in images.shape[-2:])
    rows = -(-len(images) // columns)
    picture = torch.ones(3, rows * height + GAP, min(columns, len(images)) * width + GAP)
    for place, image in enumerate(images):
        top, left = (place // columns) * height + GAP, (place % columns) * width + GAP
        picture[:, top : top + height - GAP, left : left + width - GAP] = image  # grey becomes three equal channels
    return picture


def curve(x: Sequence[float], lines: Mapping[str, Sequence[float]], x_label: str, y_label: str, log: bool = False) -> Figure:
    """One line plot."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.6), layout="constrained")
    axes = figure.subplots()
    for label, y in lines.items():
        axes.plot(x, y, label=label, linewidth=1.2)
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    if log:
        axes.set_yscale("log")
    if len(lines) > 1:
        axes.legend(frameon=False, fontsize="small")
    axes.spines[["top", "right"]].set_visible(False)
    return figure
