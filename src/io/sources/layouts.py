"""Image folders: TRAIN/CLASS/IMAGE with optional test and validation folders, or CLASS/IMAGE alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from src.ground.errors import DataError
from src.io.sources import images
from src.io.sources.raw import Encoded, Raw
from src.io.sources.trees import Listing, Tree, natural

SPLITS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
FORM = "one folder for each class, with its images in it, or such folders in train, test and val"

Classes = Mapping[str, Sequence[str]]  # class -> its images' paths, in natural order


def read(tree: Tree) -> Raw:
    """The classes are train's folders in natural order. Raises DataError."""
    groups = grouped(tree)
    classes = tuple(groups["train"])
    for split, group in groups.items():
        foreign = [name for name in group if name not in groups["train"]]
        if foreign:
            text = f"{tree.title} has the class '{foreign[0]}' in its {split} split, but not in its training split"
            raise DataError(f"{text}: give all splits the same class folders")
    return Raw(classes, {split: encoded(tree, [group.get(name, ()) for name in classes]) for split, group in groups.items()})


def encoded(tree: Tree, classes: Sequence[Sequence[str]]) -> Encoded:
    """A split from the paths of each class's images, class by class."""
    names = [path for paths in classes for path in paths]
    labels = np.repeat(np.arange(len(classes), dtype=np.int64), [len(paths) for paths in classes])
    places = {path: place for place, path in enumerate(names)}
    return Encoded(names, labels, lambda: ((places[path], stream) for path, stream in tree.streams(names)))


def grouped(tree: Tree) -> Mapping[str, Classes]:
    """Images by split and class folder, train first, classes in natural order. Raises DataError where folders say neither."""
    listing = tree.listing()
    files = sorted((path for path in listing.files if path.casefold().endswith(images.SUFFIXES)), key=natural)
    if not files:
        text = f"{tree.title} holds no image ({', '.join(images.SUFFIXES)}), nor any other form of data set"
        raise DataError(f"{text}: put {FORM} there")
    splits = _splits(tree, listing, _top(files, listing.folders))
    _check_strays(tree, files, tuple(splits.values()))
    return {split: _classes(tree, below, files, _children(listing.folders, below)) for split, below in splits.items()}


def _top(files: Sequence[str], folders: Iterable[str]) -> str:
    """The one folder that all else lies in, with a slash, where there is one above the classes; else nothing."""
    first, *others = {path.split("/")[0] for path in (*files, *folders)}
    deep = all(path.count("/") >= 2 for path in files)
    return "" if others or not deep or first.casefold() in SPLITS else f"{first}/"


def _splits(tree: Tree, listing: Listing, top: str) -> Mapping[str, str]:
    """The folder of each split, with a slash; where none is called train, all folders are classes."""
    found: dict[str, str] = {}
    names = sorted(_children(listing.folders, top))
    if names and not any(SPLITS.get(name.casefold()) == "train" for name in names):
        if all(name.casefold() in SPLITS for name in names):
            raise DataError(f"{tree.title} holds {' and '.join(names)}, but no training images: add a folder train")
        return {"train": top}
    for name in names:
        split = SPLITS.get(name.casefold())
        if split in found:
            raise DataError(f"{tree.title} holds {found[split]} and {top}{name}/ for the same split: join them")
        if split is not None:
            found[split] = f"{top}{name}/"
    return {split: found[split] for split in ("train", "val", "test") if split in found} or {"train": top}


def _check_strays(tree: Tree, files: Iterable[str], splits: tuple[str, ...]) -> None:
    """Every image must lie in a class folder, of a split folder where there are such."""
    for path in files:
        below = next((split for split in splits if path.startswith(split)), None)
        if below is None or "/" not in path.removeprefix(below):
            raise DataError(f"the image {path} in {tree.title} lies in no class folder: remove it, or make {FORM}")


def _children(folders: Iterable[str], below: str) -> set[str]:
    inside = (path.removeprefix(below) for path in folders if path.startswith(below))
    return {path for path in inside if "/" not in path}


def _classes(tree: Tree, below: str, files: Iterable[str], folders: Iterable[str]) -> Classes:
    """The images of one split by class folder, in natural order."""
    found: dict[str, list[str]] = {name: [] for name in sorted(folders, key=natural)}
    for path in files:
        if path.startswith(below):
            found[path.removeprefix(below).split("/")[0]].append(path)
    for name, paths in found.items():
        if not paths:
            raise DataError(f"the class folder {below}{name} in {tree.title} holds no image: add some, or remove the folder")
    return found
