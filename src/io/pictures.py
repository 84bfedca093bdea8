"""Pictures and figures of synthetic sets, experts and curves, for MLflow and the report."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

SIDE = 48  # pixels that an image is enlarged to, at least
MOST_COLUMNS = 10


def grid(pixels: Tensor, labels: Tensor, square: bool = False) -> np.ndarray:
    """One picture (H, W, 3) of uint8 of pixels (S, C, h, w): a row a class, or all in one row at one image per class.

    A class shows its first ten images, all classes equally many; pixels outside [0, 1] are cut off. Where the picture's
    place is `square`, images that would be one row fill it.
    """
    from torchvision.utils import make_grid

    members = [(labels == k).nonzero().squeeze(1) for k in labels.unique()]
    columns = min(MOST_COLUMNS, *(len(one) for one in members))
    shown = pixels[torch.cat([one[:columns] for one in members])]
    times = -(-SIDE // pixels.shape[-1])
    enlarged = shown.repeat_interleave(times, dim=-1).repeat_interleave(times, dim=-2)
    row = columns if columns > 1 else min(len(members), math.ceil(len(members) ** 0.5) if square else MOST_COLUMNS)
    picture = make_grid(enlarged.clamp(0, 1), nrow=row, padding=2, pad_value=1.0)
    array: np.ndarray = (picture * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    return array


def curve(x: Sequence[float], lines: Mapping[str, Sequence[float]], x_label: str, y_label: str, log: bool = False) -> Figure:
    """One line plot; the caller closes the figure."""
    figure, axes = plt.subplots(figsize=(6, 3.6), layout="constrained")
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
