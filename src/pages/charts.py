"""Charts as geometry, in percent of the plot's sides; the page's template puts words and colours to it.

Words stay the page's text, so that they keep their size on every screen; colours stay its style sheet's, light or dark.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

MOST_POINTS = 600  # of one line: more than a screen resolves
STEPS = (1.0, 2.0, 2.5, 5.0, 10.0)  # round distances of ticks, times a power of ten


@dataclass(frozen=True)
class Tick:
    """A mark on an axis."""

    at: float  # percent of the axis
    label: str


@dataclass(frozen=True)
class Scale:
    """An axis: where values lie on it, and its ticks."""

    low: float
    high: float
    values: tuple[float, ...]  # of the ticks
    log: bool = False
    percent: bool = False

    def at(self, value: float) -> float:
        """Percent of the axis; values beyond its ends lie on them."""
        low, high, value = (math.log(v) for v in (self.low, self.high, max(value, self.low))) if self.log else (
            self.low, self.high, value,
        )  # fmt: skip
        return round(min(max((value - low) / (high - low), 0.0), 1.0) * 100, 2)

    @property
    def ticks(self) -> tuple[Tick, ...]:
        return tuple(Tick(self.at(v), f"{v * 100:.4g}" if self.percent else f"{v:.4g}") for v in self.values)


@dataclass(frozen=True)
class Series:
    """Numbers of one line. A window over 1 draws them thin, with their running mean upon them."""

    label: str
    colour: int
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] = ()  # lower and upper edge of a band around the line
    high: Sequence[float] = ()
    window: int = 1


@dataclass(frozen=True)
class Line:
    """A series as SVG paths in a plot of 100 by 100; empty where there is none."""

    label: str
    colour: int
    path: str
    raw: str
    band: str


@dataclass(frozen=True)
class Chart:
    """A line chart; the description says in words what it shows."""

    title: str
    x_label: str
    x: Scale
    y: Scale
    lines: tuple[Line, ...]
    description: str


def line_chart(title: str, x_label: str, series: Sequence[Series], log: bool = False, percent: bool = False) -> Chart:
    """A chart of at least one series with at least one point each."""
    xs = [x for one in series for x in one.x]
    ys = [y for one in series for y in (*one.y, *one.low, *one.high)]
    x = Scale(min(xs), max(max(xs), min(xs) + 1), tuple(v for v in round_numbers(min(xs), max(xs)) if v == int(v)))
    y = log_scale(ys) if log else linear_scale(ys if percent else [0.0, *ys], percent)
    return Chart(title, x_label, x, y, tuple(_line(one, x, y) for one in series), _description(title, x_label, series, percent))


def linear_scale(values: Iterable[float], percent: bool = False) -> Scale:
    """From a round number to a round number around the values; percentages are fractions and end at 1."""
    values = list(values)
    low, high = min(values), max(values)
    step = _step(low, high)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    if percent and first * step >= 1:  # all are perfect, and nothing lies above
        first -= 1
    marks = tuple(round(i * step, 12) for i in range(first, max(last, first + 1) + 1))
    if percent and marks[-1] > 1 >= high:
        return Scale(marks[0], 1.0, tuple(v for v in marks if v <= 1), percent=True)
    return Scale(marks[0], marks[-1], marks, percent=percent)


def log_scale(values: Iterable[float]) -> Scale:
    """Logarithmic over the positive values, a little wider than they are."""
    positive = [v for v in values if v > 0] or [1.0]
    low, high = min(positive) / 1.15, max(positive) * 1.15
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for factors in ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 4, 5, 6, 7, 8, 9)):
        marks = tuple(f * 10.0**d for d in decades for f in factors if low <= f * 10.0**d <= high)
        if len(marks) >= 3:
            break
    if len(marks) < 2:  # the values are too close for any of these factors
        marks = tuple(v for v in linear_scale([low, high]).values if low <= v <= high)
    return Scale(low, high, marks, log=True)


def round_numbers(low: float, high: float) -> list[float]:
    """Ticks inside [low, high]."""
    step = _step(low, high)
    return [round(i * step, 12) for i in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def running_mean(values: Sequence[float], window: int) -> list[float]:
    """Mean over `window` values around each; the window is cut off at both ends."""
    half = window // 2
    parts = [values[max(i - half, 0) : i + half + 1] for i in range(len(values))]
    return [sum(part) / len(part) for part in parts]


def _step(low: float, high: float) -> float:
    """A round distance that gives about four."""
    rough = (high - low or abs(high) or 1.0) / 4
    power = 10.0 ** math.floor(math.log10(rough))
    return next(s * power for s in STEPS if s * power >= rough * 0.999)


def _line(series: Series, x: Scale, y: Scale) -> Line:
    raw = _path(series.x, series.y, x, y)
    smooth = _path(series.x, running_mean(series.y, series.window), x, y) if series.window > 1 else raw
    band = ""
    if series.low:
        there, back = _path(series.x, series.high, x, y), _path(series.x[::-1], series.low[::-1], x, y)
        band = f"{there}L{back[1:]}Z"
    return Line(series.label, series.colour, smooth, raw if series.window > 1 else "", band)


def _path(xs: Sequence[float], ys: Sequence[float], x: Scale, y: Scale) -> str:
    """SVG's y axis points down."""
    every = -(-len(xs) // MOST_POINTS)
    chosen = [*range(0, len(xs) - 1, every), len(xs) - 1]
    return "M" + "L".join(f"{x.at(xs[i]):g},{round(100 - y.at(ys[i]), 2):g}" for i in chosen)


def _description(title: str, x_label: str, series: Sequence[Series], percent: bool) -> str:
    def text(value: float) -> str:
        return f"{value:.1%}" if percent else f"{value:.3g}"

    def ends(one: Series) -> str:
        y = running_mean(one.y, one.window)
        return f"{one.label} from {text(y[0])} to {text(y[-1])}"

    return f"{title} by {x_label}: {'; '.join(ends(one) for one in series)}."
