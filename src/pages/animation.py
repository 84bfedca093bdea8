"""Animations of images evolving over iterations, as WebP or GIF: a panel a run, all at the same share of their way."""

from __future__ import annotations

import bisect
import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from src.ground.errors import UserError
from src.pages import levels
from src.pages.sheets import COLUMNS, MOST_ROWS, shown_of_each
from src.store import files

FORMATS = {".webp": "WEBP", ".gif": "GIF"}
SIDE = 48  # pixels that an image is enlarged to, at least, where nothing else is asked for
GAP, MARGIN, APART = 2, 24, 36  # pixels between images, around the picture, between panels
LONGEST = 8192  # side of a picture, in pixels
PER_SECOND = 20  # frames, at most: GIF's clock has a hundredth of a second
NEAR = 1e-6  # shares of the way that count as one
HELD = 0.15  # share of the time that the last frame stays
PAPER, INK, SOFT, RULE, TONE = (252, 251, 248), (27, 26, 24), (98, 94, 87), (228, 224, 216), (29, 95, 184)  # the page's
LARGE, MEDIUM, SMALL = 15, 13, 11  # pixels of letters
LINE = 1.4  # heights of letters from one line to the next
LABEL = round(SMALL * LINE) + 2  # pixels above images for the names of their classes
SHAPE = 1.6  # width by height that panels are put together to

Size = tuple[int, int]  # width and height


@dataclass(frozen=True)
class Moments:
    """One run's images over its iterations; a set that is not distilled has one moment."""

    run: str
    classes: tuple[str, ...]
    labels: Tensor  # (S,)
    iterations: tuple[int, ...]  # rising
    pixels: Tensor  # (moments, S, C, H, W)

    @property
    def shares(self) -> tuple[float, ...]:
        """How far on its way each moment is, from 0 to 1."""
        last = self.iterations[-1]
        return tuple(iteration / last if last else 0.0 for iteration in self.iterations)

    def at(self, share: float) -> int:
        """The moment that shows when so much of the way is done: the last one that is not later."""
        return max(bisect.bisect_right(self.shares, share + NEAR) - 1, 0)

    def told(self, moment: int) -> str:
        """Which iteration that is, in words, and what is left out for room."""
        last, most, each = self.iterations[-1], COLUMNS * MOST_ROWS, int(torch.bincount(self.labels).max())
        words = [f"iteration {self.iterations[moment]:,} of {last:,}" if last else "not distilled"]
        if len(self.classes) > most:
            words.append(f"{most} of {len(self.classes):,} classes")
        if each > self.rows:
            words.append(f"{self.rows} of {each:,} images per class")
        return ", ".join(words)

    def bands(self, moment: int) -> list[tuple[tuple[str, ...], list[Tensor]]]:
        """Ten classes each, with a column of images (n, C, H, W) a class: of ten classes up to ten images, of more the first.

        A hundred classes at most are shown.
        """
        rows, pixels = self.rows, self.pixels[moment]
        columns = [pixels[self.labels == k][:rows] for k in range(min(len(self.classes), COLUMNS * MOST_ROWS))]
        starts = range(0, len(columns), COLUMNS)
        return [(self.classes[s : s + COLUMNS][: len(columns) - s], columns[s : s + COLUMNS]) for s in starts]

    @property
    def rows(self) -> int:
        """Images of a class that are shown, at most."""
        return shown_of_each(self.labels, len(self.classes), 1 if len(self.classes) > COLUMNS else MOST_ROWS)


def shares(shown: Sequence[Moments], seconds: float) -> list[float]:
    """When something changes in any run, as shares of the way; not more than fit into the time."""
    all_of_them = sorted({round(share, 6) for one in shown for share in one.shares})
    most = max(2, int(seconds * PER_SECOND))
    if len(all_of_them) <= most:
        return all_of_them
    return [all_of_them[round(i * (len(all_of_them) - 1) / (most - 1))] for i in range(most)]


def write(path: Path, shown: Sequence[Moments], seconds: float, scale: int | None) -> int:
    """Write the animation, whole or not at all, and say of how many frames it is; its suffix is one of FORMATS."""
    moments = shares(shown, seconds)
    pictures = [frame(shown, share, scale) for share in moments]
    kind = FORMATS[path.suffix.lower()]
    if kind == "GIF":
        pictures = [picture.quantize(256, dither=Image.Dither.NONE) for picture in pictures]
    options: dict[str, Any] = {"lossless": True} if kind == "WEBP" else {"optimize": False}
    if len(pictures) > 1:
        options |= {"save_all": True, "append_images": pictures[1:], "duration": durations(len(pictures), seconds), "loop": 0}
    files.write_atomically(path, lambda file: pictures[0].save(file, kind, **options))
    return len(pictures)


def durations(frames: int, seconds: float) -> list[int]:
    """Milliseconds of each frame; the last one stays longer."""
    each = max(20, round(1000 * seconds * (1 - HELD) / frames, -1))
    return [int(each)] * (frames - 1) + [int(each + round(1000 * seconds * HELD, -1))]


def frame(shown: Sequence[Moments], share: float, scale: int | None) -> Image.Image:
    """All runs when so much of their way is done. Raises UserError where that is too large for a picture."""
    panels = [panel(one, one.at(share), scale) for one in shown]
    layouts = [_layout([one.size for one in panels], columns) for columns in range(1, len(panels) + 1)]
    places, whole = min(layouts, key=lambda layout: abs(math.log(layout[1][0] / layout[1][1] / SHAPE)))
    picture = _paper(*whole)
    for one, place in zip(panels, places, strict=True):
        picture.paste(one, place)
    if any(len(one.iterations) > 1 for one in shown):
        _show_progress(picture, share)
    return picture


def _layout(sizes: Sequence[Size], columns: int) -> tuple[list[Size], Size]:
    """Where panels lie that stand in so many columns, and the size of the whole, in pixels."""
    widths = [max(width for width, _ in sizes[column::columns]) for column in range(columns)]
    rows = range(0, len(sizes), columns)
    heights = [max(height for _, height in sizes[first : first + columns]) for first in rows]
    lefts, tops = ([MARGIN + sum(sides[:n]) + n * APART for n in range(len(sides) + 1)] for sides in (widths, heights))
    places = [(lefts[place % columns], tops[place // columns]) for place in range(len(sizes))]
    return places, (lefts[-1] - APART + MARGIN, tops[-1] - APART + MARGIN)


def _paper(width: int, height: int) -> Image.Image:
    if max(width, height) > LONGEST:
        raise UserError(
            f"the picture would have {width:,} x {height:,} pixels, and a side may have {LONGEST:,}: "
            "give a smaller --scale or fewer runs"
        )
    return Image.new("RGB", (width, height), PAPER)


def _show_progress(picture: Image.Image, share: float) -> None:
    """A line below all, as long as what is done."""
    draw, (width, height) = ImageDraw.Draw(picture), picture.size
    left, right, top = MARGIN, width - MARGIN, height - MARGIN // 2 - 2
    draw.rectangle((left, top, right, top + 2), RULE)
    draw.rectangle((left, top, left + round((right - left) * share), top + 2), TONE)


def panel(one: Moments, moment: int, scale: int | None) -> Image.Image:
    """One run's images with its name, the iteration and the names of classes; as large for every moment."""
    side = one.pixels.shape[-1]
    cell, bands = side * (scale or -(-SIDE // side)), one.bands(moment)
    head, step = round((LARGE + MEDIUM) * LINE) + 6, LABEL + one.rows * (cell + GAP) + GAP
    words = [(LARGE, one.run), *((MEDIUM, one.told(any_one)) for any_one in range(len(one.iterations)))]
    widths = [math.ceil(_font(size).getlength(text)) for size, text in words]
    picture = _paper(max(len(bands[0][0]) * (cell + GAP) - GAP, *widths), head + len(bands) * step)
    draw = ImageDraw.Draw(picture)
    draw.text((0, 0), one.run, INK, _font(LARGE))
    draw.text((0, round(LARGE * LINE)), one.told(moment), SOFT, _font(MEDIUM))
    for place, (names, columns) in enumerate(bands):
        _draw_band(picture, head + place * step, names, columns, cell)
    return picture


def _draw_band(picture: Image.Image, top: int, names: Sequence[str], columns: Sequence[Tensor], cell: int) -> None:
    """Names of classes, and a column of images below each."""
    draw = ImageDraw.Draw(picture)
    for place, (name, images) in enumerate(zip(names, columns, strict=True)):
        left = place * (cell + GAP)
        draw.text((left + cell / 2, top), _shortened(name, cell), SOFT, _font(SMALL), anchor="ma")
        for row, image in enumerate(images):
            picture.paste(_enlarged(image, cell), (left, top + LABEL + row * (cell + GAP)))


@functools.cache
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def _shortened(name: str, width: int) -> str:
    """As much of a name as there is room for."""
    font = _font(SMALL)
    if font.getlength(name) <= width:
        return name
    return next((f"{name[:n]}.." for n in range(len(name) - 1, 0, -1) if font.getlength(f"{name[:n]}..") <= width), "")


def _enlarged(image: Tensor, side: int) -> Image.Image:
    """An image (C, H, W) of pixels, with the contrast of levels.py, without smoothing."""
    array = (levels.shown(image) * 255).round().to(torch.uint8).expand(3, -1, -1).permute(1, 2, 0).contiguous()
    return Image.fromarray(array.numpy()).resize((side, side), Image.Resampling.NEAREST)
