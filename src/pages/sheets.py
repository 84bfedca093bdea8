"""Contact sheets of images for the page: PNGs of the images' own size, which the browser enlarges without smoothing."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from src.pages import levels

COLUMNS = 10  # classes of one sheet
MOST_ROWS = 10  # images of one class
HALF_LEVEL = 0.5 / 255  # what eight bits can't show is not out of range


@dataclass(frozen=True)
class Sheet:
    """Images of a few classes: a column a class."""

    uri: str
    classes: tuple[str, ...]
    rows: int


def sheets(pixels: Tensor, labels: Tensor, classes: Sequence[str], rows: int = MOST_ROWS) -> tuple[Sheet, ...]:
    """Sheets of pixels (S, C, H, W) in class order, COLUMNS classes each, the first `rows` images of each class, or all."""
    most = shown_of_each(labels, len(classes), rows)
    by_class = [pixels[labels == k][:most] for k in range(len(classes))]
    found = []
    for first in range(0, len(classes), COLUMNS):
        columns = by_class[first : first + COLUMNS]
        height = max(1, *map(len, columns))
        found.append(Sheet(_uri(_canvas(columns, height)), tuple(classes[first : first + COLUMNS]), height))
    return tuple(found)


def shown_of_each(labels: Tensor, classes: int, rows: int) -> int:
    """Images of a class that are shown, at most: where a set (S,) has no more than `rows` a class, all that any class has, so
    that none is left out whose soft label is another class's by now.
    """
    most = int(torch.bincount(labels).max())
    return most if len(labels) <= rows * classes else min(most, rows)


def single(pixels: Tensor) -> str:
    """One image (C, H, W) by itself."""
    return _uri(_canvas([pixels[None]], 1))


def out_of_range(pixels: Tensor) -> float:
    """Fraction of pixels outside [0, 1]."""
    return ((pixels < -HALF_LEVEL) | (pixels > 1 + HALF_LEVEL)).double().mean().item()


def roll(moments: Sequence[Sequence[Tensor]], rows: int) -> str:
    """All moments in one picture, one below the other: columns of images each. A transparent pixel lies around each."""
    return _uri(torch.cat([torch.nn.functional.pad(_canvas(columns, rows), (0, 0, 1, 1)) for columns in moments], dim=1))


def _canvas(columns: Sequence[Tensor], rows: int) -> Tensor:
    """Red, green, blue and opacity (4, H, W); a transparent pixel parts the images, and missing ones are transparent."""
    height, width = columns[0].shape[-2:]
    canvas = torch.zeros(4, rows * (height + 1) - 1, len(columns) * (width + 1) - 1)
    for x, column in enumerate(columns):
        for y, image in enumerate(column):
            place = canvas[:, y * (height + 1) :, x * (width + 1) :][:, :height, :width]
            place[:3] = levels.shown(image)  # grey becomes three equal channels
            place[3] = 1
    return canvas


def _uri(canvas: Tensor) -> str:
    """PNG in a data URI."""
    array = (canvas * 255).round().to(torch.uint8).permute(1, 2, 0).contiguous()  # (H, W, 4)
    file = io.BytesIO()
    Image.fromarray(array.numpy()).save(file, format="png", optimize=True)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
