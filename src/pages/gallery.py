"""The page of images evolving over iterations: without a script, each run a roll of pictures that its style sheet moves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from src.pages import page, sheets
from src.pages.animation import HELD, Moments
from src.pages.sheets import Sheet

TEMPLATE = "gallery.html.j2"
LARGEST = 7 * 16  # pixels of an image's side on the page, where nothing else is asked for


@dataclass(frozen=True)
class Roll:
    """Images of up to ten classes at all moments, one below the other in one picture."""

    uri: str
    classes: tuple[str, ...]
    width: int  # of one moment, in the images' own pixels
    height: int


@dataclass(frozen=True)
class Reel:
    """One run: its rolls, and where on them it is when."""

    run: str
    told: tuple[str, ...]  # a moment each
    rolls: tuple[Roll, ...]
    stops: tuple[tuple[float, float], ...]  # percent of the time, and how far the roll has moved by then, in percent
    strips: tuple[tuple[int, Sheet], ...]  # iteration, and the first image of each class
    side: int  # pixels of an image on the screen, at most


def html(shown: Sequence[Moments], title: str, seconds: float, scale: int | None) -> str:
    """The page as one HTML document."""
    return page.filled(TEMPLATE, title=title, reels=[_reel(one, scale) for one in shown], seconds=seconds)


def _reel(one: Moments, scale: int | None) -> Reel:
    moments, side = range(len(one.iterations)), one.pixels.shape[-1]
    by_moment = [one.bands(moment) for moment in moments]
    rolls = [_roll([bands[place] for bands in by_moment], one) for place in range(len(by_moment[0]))]
    until = 100 * (1 - HELD)  # the last moment stays
    stops = tuple((round(until * share, 3), round(100 * k / len(moments), 4)) for k, share in enumerate(one.shares))
    first = [sheets.sheets(pixels, one.labels, one.classes, rows=1)[0] for pixels in one.pixels] if len(moments) > 1 else []
    strips = tuple(zip(one.iterations, first, strict=False))
    return Reel(one.run, tuple(map(one.told, moments)), tuple(rolls), stops, strips, side * scale if scale else LARGEST)


def _roll(bands: Sequence[tuple[tuple[str, ...], list[Tensor]]], one: Moments) -> Roll:
    names, columns = bands[0]
    height, width = columns[0].shape[-2:]
    shown = sheets.roll([columns for _, columns in bands], one.rows)
    return Roll(shown, names, len(columns) * (width + 1) - 1, one.rows * (height + 1) + 1)
