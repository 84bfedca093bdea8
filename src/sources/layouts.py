"""Image folders: TRAIN/CLASS/IMAGE with optional test and validation folders, or CLASS/IMAGE alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from src.ground.counting import counted
from src.ground.errors import DataError
from src.settings.datasets import SplitFolders
from src.sources import contents, nesting, splits
from src.sources.nesting import ancestors
from src.sources.raw import Encoded, Raw
from src.sources.sentences import shown
from src.sources.splits import Layout
from src.sources.trees import Tree

FORM = "one folder for each class, with its images in it, or such folders in train, test and val"

Classes = Mapping[str, Sequence[str]]  # class -> its images' paths, in natural order
LeftOut = Mapping[str, str]  # path -> why


@dataclass(frozen=True)
class Grouped:
    """The images of a tree."""

    groups: Mapping[str, Classes]  # split -> its classes in natural order; train first
    left_out: LeftOut
    notes: tuple[str, ...]


def read(tree: Tree, told: SplitFolders | None = None) -> Raw:
    """The classes are train's folders in natural order; `told` is what the settings say of splits. Raises DataError."""
    found = grouped(tree, told)
    classes = tuple(found.groups["train"])
    for split, group in found.groups.items():
        foreign = [name for name in group if name not in found.groups["train"]]
        if foreign:
            text = f"{tree.title} has the class '{foreign[0]}' in its {split} split, but not in its training split"
            raise DataError(f"{text}: give all splits the same class folders")
    encodings = {split: encoded(tree, [group.get(name, ()) for name in classes]) for split, group in found.groups.items()}
    return Raw(classes, encodings, left_out=printable(found.left_out), notes=found.notes)


def encoded(tree: Tree, classes: Sequence[Sequence[str]]) -> Encoded:
    """A split from the paths of each class's images, class by class."""
    paths = [path for each in classes for path in each]
    labels = np.repeat(np.arange(len(classes), dtype=np.int64), [len(each) for each in classes])
    places = {path: place for place, path in enumerate(paths)}
    names = [shown(path) for path in paths]
    return Encoded(names, labels, lambda: ((places[path], stream) for path, stream in tree.streams(paths)))


def printable(left_out: LeftOut) -> LeftOut:
    return {shown(path): why for path, why in left_out.items()}


def grouped(tree: Tree, told: SplitFolders | None = None) -> Grouped:
    """Images by split and class folder. Raises DataError where folders say neither, or hold none."""
    held = contents.of(tree)
    if not held.images:
        text = f"{tree.title} holds no image that can be read{_instead(held.left_out)}, nor any other form of data set"
        raise DataError(f"{text}: put {FORM} there")
    layout = splits.decide(tree.title, nesting.nest(held.images, held.folders), told)
    groups, left_out = _placed(tree, held.images, layout)
    left_out |= held.left_out
    for split, classes in layout.classes.items():
        for name, folder in classes.items():
            if not groups[split][name]:
                inside = {path: why for path, why in left_out.items() if path.startswith(f"{folder}/")}
                text = f"the class folder {folder} in {tree.title} holds no image{_instead(inside)}"
                raise DataError(f"{text}: add some, or remove the folder")
    return Grouped(groups, left_out, layout.notes)


def _placed(tree: Tree, images: Sequence[str], layout: Layout) -> tuple[dict[str, dict[str, list[str]]], dict[str, str]]:
    """The images by split and class, and those of folders that are set aside; all others must not be there."""
    groups: dict[str, dict[str, list[str]]] = {split: {name: [] for name in names} for split, names in layout.classes.items()}
    left_out: dict[str, str] = {}
    owners = {folder: groups[split][name] for split, names in layout.classes.items() for name, folder in names.items()}
    known = {*owners, *layout.aside, *layout.folders}
    for path in images:
        folder = next((one for one in ancestors(path) if one in known), path)
        if folder in owners:
            owners[folder].append(path)
        elif folder in layout.aside:
            left_out[path] = layout.aside[folder]
        else:
            named = ", or name the folders of splits with --splits (prepare's setting splits)" if layout.folders else ""
            raise DataError(f"the image {path} in {tree.title} lies in no class folder: remove it, or make {FORM}{named}")
    return groups, left_out


def _instead(left_out: LeftOut) -> str:
    """What a folder without images holds."""
    counts = Counter(left_out.values())
    listed = " and ".join(f"{counted(count, 'file')} ({why})" for why, count in counts.items())
    return f", but {listed}" if listed else ""
