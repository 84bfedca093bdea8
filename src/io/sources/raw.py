"""A source before its images are brought to one shape: classes, labels, and images in files of their own or in one array."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from src.ground.errors import DataError
from src.io.sources.sentences import shown

Bytes = NDArray[np.uint8]
Labels = NDArray[np.int64]


@dataclass(frozen=True)
class Encoded:
    """Images of one split in N files of their own."""

    names: Sequence[str]  # (N,) as they can be printed, in the source's own order
    labels: Labels  # (N,)
    streams: Callable[[], Iterator[tuple[int, BinaryIO]]]  # each image's place in `names` and its bytes, in any order


@dataclass(frozen=True)
class Plain:
    """Images of one split in one array."""

    images: Bytes  # (N, H, W, C), C is 1 or 3
    labels: Labels  # (N,)


RawSplit = Encoded | Plain


@dataclass(frozen=True)
class Raw:
    """Names of the K classes, and splits by name: "train" always, "val" and "test" where the source has them."""

    classes: tuple[str, ...]
    splits: Mapping[str, RawSplit]
    pixel_max: int = 255
    left_out: Mapping[str, str] = field(default_factory=dict)  # each file that is no image of the data set -> why
    notes: tuple[str, ...] = ()  # sentences: what was found and decided


def numbered(labels: Mapping[str, Labels]) -> tuple[str, ...]:
    """The numbers 0, 1, .. as class names, up to the largest label of any split.

    Raises DataError where the numbers can't be those of classes, each of which needs a training image.
    """
    most = max((int(values.max()) for values in labels.values() if len(values)), default=-1)
    count = len(labels["train"])
    if most >= count:
        raise DataError(f"the labels go up to {most} with {count} training images only: number the classes 0, 1, 2, ...")
    return tuple(str(number) for number in range(most + 1))


def check(raw: Raw) -> None:
    """Raises DataError unless classes and labels can be trained on."""
    if len(raw.classes) < 2:
        raise DataError(f"the source has {len(raw.classes)} class ({', '.join(raw.classes)}): training needs 2 or more")
    _check_names(raw.classes)
    for split, value in raw.splits.items():
        _check_labels(split, value, len(raw.classes))
    check_every_class(raw.classes, raw.splits["train"].labels)


def check_every_class(classes: Sequence[str], labels: Labels) -> None:
    """Raises DataError unless every class has a training image."""
    counts = np.bincount(labels, minlength=len(classes))
    if not counts.all():
        empty = classes[int(np.argmin(counts > 0))]
        raise DataError(f"the class '{empty}' has no training image: add some, or leave the class out")


def _check_names(classes: Sequence[str]) -> None:
    """Names go into tables and pages; those that differ in case only are one folder on some file systems, and one class."""
    seen: dict[str, str] = {}
    for name in classes:
        if shown(name) != name:
            raise DataError(f"the class name '{shown(name)}' is no text (UTF-8 without control characters): rename it")
        other = seen.setdefault(name.casefold(), name)
        if other is not name:
            text = f"the classes '{other}' and '{name}' have the same name but for case"
            raise DataError(f"{text}: join them, or rename one")


def _check_labels(split: str, value: RawSplit, classes: int) -> None:
    count = len(value.names) if isinstance(value, Encoded) else len(value.images)
    if count != len(value.labels):
        text = f"the {split} split has {count} images and {len(value.labels)} labels"
        raise DataError(f"{text}: give each image one label")
    if count == 0:
        raise DataError(f"the {split} split holds no image: fill it, or remove it")
    low, high = int(value.labels.min()), int(value.labels.max())
    if low < 0 or high >= classes:
        text = f"the {split} split has the label {low if low < 0 else high}, but the classes are 0 to {classes - 1}"
        raise DataError(f"{text}: correct the labels, or name every class")
