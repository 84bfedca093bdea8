"""Training images of a source -> its splits, each with the classes in the same proportions as far as whole images allow."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from src.ground.counting import counted
from src.ground.errors import DataError

Indices = NDArray[np.int64]  # of images, ascending
TITLES = {"test": "test", "val": "validation"}


def split(
    labels: Indices, classes: Sequence[str], fractions: Mapping[str, float], train_images: int | None, state: int
) -> Mapping[str, Indices]:
    """The images of "train", and of the splits of `fractions`, "test" and "val", that are cut from the N labelled ones.

    `labels` (N,) are places in `classes`, `fractions` parts of N, `train_images` how many of the rest are kept; None keeps all.
    A split has as many images as there are classes, or more where its fraction is more. Raises DataError where a class has
    too few images.
    """
    train: Indices = np.arange(len(labels))
    cut: dict[str, Indices] = {}
    rest = 1.0  # fraction of the images that is left
    for name in ("test", "val"):
        if name in fractions:
            part = f"a {TITLES[name]} split of {100 * fractions[name]:g} %"
            _check_classes(labels, train, classes, part)
            count = max(math.ceil(fractions[name] / rest * len(train)), len(classes))
            if len(train) - count < len(classes):
                text = f"{part} leaves {len(train) - count} of {len(train)} images for {len(classes)} classes"
                raise DataError(f"{text}: add images, or cut smaller splits")
            train, cut[name] = _cut(train, labels, count, state)
            rest -= fractions[name]
    if train_images is not None:
        train = _kept(train, labels, classes, train_images, state)
    lacking = np.bincount(labels[train], minlength=len(classes)) == 0
    if lacking.any():
        text = f"the class '{classes[int(lacking.argmax())]}' is so small that it keeps no training image"
        raise DataError(f"{text}: add images of it, or keep more of the training images")
    return {"train": train, **cut}


def _cut(index: Indices, labels: Indices, count: int, state: int) -> tuple[Indices, Indices]:
    from sklearn.model_selection import train_test_split  # takes a second

    kept, cut = train_test_split(index, test_size=count, stratify=labels[index], random_state=state)
    return np.sort(kept), np.sort(cut)


def _kept(index: Indices, labels: Indices, classes: Sequence[str], count: int, state: int) -> Indices:
    """So many of the training images. Raises DataError where each class can't lose one and keep one."""
    least, most = len(classes), len(index) - len(classes)
    if not least <= count <= most:
        text = f"train_images: {count} of {len(index)} training images is not within {least} and {most}"
        raise DataError(f"{text}, so that each of the {least} classes can lose one and keep one: set null for all images")
    _check_classes(labels, index, classes, f"the {len(index) - count} images that train_images leaves out")
    return _cut(index, labels, len(index) - count, state)[0]


def _check_classes(labels: Indices, index: Indices, classes: Sequence[str], part: str) -> None:
    """Each class must have an image to cut off and one to keep."""
    counts = np.bincount(labels[index], minlength=len(classes))
    smallest = int(counts.argmin())
    if counts[smallest] >= 2:
        return
    if len(labels) == len(classes):
        text = f"each of the {len(classes)} classes has 1 image, so that {part} can't be cut off"
        raise DataError(f"{text}: add images, or name classes by labels that several images share")
    left, whole = int(counts[smallest]), int(np.bincount(labels)[smallest])
    taken = f", {whole - left} of which other splits take" if left < whole else ""
    text = f"the class '{classes[smallest]}' has {counted(whole, 'image')}{taken}"
    raise DataError(f"{text}: too few for {part} and for training, which take 1 each: add images of it, or leave the class out")
