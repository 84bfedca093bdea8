"""The section `tune`: studies, and the ranges that they search."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

from pydantic import Field, model_validator

from src.settings.base import Positive, Settings, Several
from src.settings.distillation import Distillation
from src.settings.experts import Experts


class Range(Settings):
    """Values that a study may try for one parameter: all from low to high, or one of the choices."""

    low: float | None = None
    """Smallest value."""
    high: float | None = None
    """Largest value."""
    log: bool = False
    """Draw evenly over orders of magnitude instead of over the values."""
    choices: Annotated[tuple[bool | int | float | str | None, ...], Field(strict=False)] = ()
    """The values themselves, instead of low and high; a single one keeps the parameter at it."""

    @model_validator(mode="after")
    def _is_one_of_two(self) -> Range:
        ends = (self.low, self.high)
        if bool(self.choices) == any(end is not None for end in ends) or (not self.choices and None in ends):
            raise ValueError("give low and high, or choices")
        if self.low is not None and self.high is not None and self.low >= self.high:
            raise ValueError(f"low {self.low:g} must lie below high {self.high:g}")
        if self.log and (self.low is None or self.low <= 0):
            raise ValueError("log needs a low above 0")
        return self


class Ranges(Settings):
    """Ranges of one data set that differ from those of src/studies/space.py, by the field's name."""

    distill: Mapping[str, Range] = {}
    """Fields of Distillation: the student side."""
    experts: Mapping[str, Range] = {}
    """Fields of Experts: the expert side."""

    @model_validator(mode="after")
    def _names_fields(self) -> Ranges:
        for section, model in (("distill", Distillation), ("experts", Experts)):
            for name in getattr(self, section):
                if name not in model.model_fields:
                    raise ValueError(f"{section}.{name} is no setting: choose from {', '.join(model.model_fields)}")
        return self


class Tune(Settings):
    """Studies: how parameters are searched, and by how many students they are judged, on the validation split alone."""

    trials: Positive = 30
    """Trials of a study, all in all."""
    students: Several = 5
    """Fresh students of a finished trial; their mean validation accuracy is its value."""
    epochs: Positive | None = None
    """Epochs of these students; null takes those of the run's protocol."""
    rungs: Positive = 3
    """Moments, evenly spaced over the iterations, at which a trial is scored; the last one is its end, and at those before a
    trial below the median of the finished ones is given up. 1 gives none up."""
    rung_students: Several = 2
    """Fresh students at the moments before the end."""
    storage: str | None = Field(default=None, exclude_if=lambda value: value is None)
    """Where studies lie: null is a journal in data/tune; else the URL of a database, postgresql+psycopg://USER@HOST/NAME, or of
    Optuna's proxy before one, grpc://HOST:13000."""
    ranges: Mapping[str, Ranges] = {}
    """Ranges by data set, a key of `prepare`."""
