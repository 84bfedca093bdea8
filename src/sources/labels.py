"""What labels the images of tables and arrays, whole numbers or texts, -> classes, and their numbers from 0."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from src.ground.errors import DataError
from src.sources.raw import Labels
from src.sources.sentences import first
from src.sources.trees import natural

Value = int | str
Values = Sequence[Value]  # of the N images of a split, all of one kind
SHOWN = 5  # classes that a sentence names


@dataclass(frozen=True)
class Classed:
    """The K classes of the training images, and each image's place among them."""

    classes: tuple[str, ...]
    labels: Mapping[str, Labels]  # split -> (N,)
    notes: tuple[str, ...]  # sentences


def classed(values: Mapping[str, Values], names: Mapping[Value, str] | None = None) -> Classed:
    """Classes are the numbers in their order, or the texts in natural order, that label training images.

    `names` are those of numbers, where they are known. Raises DataError where a label stands for no class of the training
    images.
    """
    found = set(values["train"])
    known = sorted(found, key=lambda value: natural(value) if isinstance(value, str) else (value,))
    for split, those in values.items():
        _check(split, set(those), found, names)
    places = {value: place for place, value in enumerate(known)}
    labels = {split: np.array([places[value] for value in those], np.int64) for split, those in values.items()}
    if names is None:
        return Classed(tuple(str(value) for value in known), labels, _numbers([v for v in known if isinstance(v, int)]))
    return Classed(tuple(names[value] for value in known), labels, _unused([names[n] for n in names if n not in found]))


def _check(split: str, values: set[Value], found: set[Value], names: Mapping[Value, str] | None) -> None:
    for value in sorted(values, key=str):
        if isinstance(value, int) and value < 0:
            text = f"the {split} split has the label {value}, which stands for images without a class"
            raise DataError(f"{text}: leave these images out, or number the classes from 0")
        if names is not None and value not in names:
            text = f"the {split} split has the label {value}, but the classes are {min(names)} to {max(names)}"
            raise DataError(f"{text}: correct the labels, or name every class")
        if value not in found:
            text = f"the {split} split has the label {value if names is None else names[value]}, of which training has no image"
            raise DataError(f"{text}: add training images of it, or leave its images out")


def _numbers(known: Sequence[int]) -> tuple[str, ...]:
    """What to say of numbers that are not 0, 1, 2, ..."""
    if list(known) == list(range(len(known))):
        return ()
    whole = len(known) == known[-1] - known[0] + 1
    said = f"{known[0]} to {known[-1]}" if whole else first(map(str, known), SHOWN)
    return (f"the labels are the numbers {said}, which name the classes",)


def _unused(names: Sequence[str]) -> tuple[str, ...]:
    return (f"no training image is of {first(names, SHOWN)}: left out of the classes",) if names else ()
