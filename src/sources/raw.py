"""A source before its images are brought to one shape: classes, labels, and images in files of their own or in one array."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from src.ground.errors import DataError
from src.sources.sentences import shown

Bytes = NDArray[np.uint8]
Labels = NDArray[np.int64]

SPLITS = ("train", "val", "test")  # in the order of all that is told of them


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


def check(raw: Raw) -> None:
    """Raises DataError unless classes and labels can be trained on."""
    for split, value in raw.splits.items():
        _check_counts(split, value)
    if len(raw.classes) < 2:
        raise DataError(f"the source has {len(raw.classes)} class ({', '.join(raw.classes)}): training needs 2 or more")
    _check_names(raw.classes)
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
        if name.casefold() in seen:
            text = f"the classes '{seen[name.casefold()]}' and '{name}' have the same name but for case"
            raise DataError(f"{text}: join them, or rename one")
        seen[name.casefold()] = name


def _check_counts(split: str, value: RawSplit) -> None:
    count = len(value.names) if isinstance(value, Encoded) else len(value.images)
    if count != len(value.labels):
        text = f"the {split} split has {count} images and {len(value.labels)} labels"
        raise DataError(f"{text}: give each image one label")
    if count == 0:
        raise DataError(f"the {split} split holds no image: fill it, or remove it")
