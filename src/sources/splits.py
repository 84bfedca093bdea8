"""Which folders are splits and which are classes: by usual names of splits, by what the settings say, or else a question."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from src.ground.errors import DataError
from src.settings.datasets import SplitFolders
from src.sources import sentences
from src.sources.nesting import Nest, ancestors, name_of
from src.sources.raw import SPLITS
from src.sources.words import split_of_folder, telling

UNLABELLED = frozenset(("pred", "predict", "prediction", "predictions", "unlabeled", "unlabelled", "unlabel"))
NO_LABELS = "in no class folder, so without a label"
NOT_NAMED = "in no folder that the setting splits names"
SHOWN = 3  # names of folders in a sentence


@dataclass(frozen=True)
class Layout:
    """Folders by what they are."""

    classes: Mapping[str, Mapping[str, str]]  # split -> class -> its folder; train first
    folders: frozenset[str] = frozenset()  # of splits: an image in one that lies in no class folder is in a wrong place
    aside: Mapping[str, str] = field(default_factory=dict)  # folder whose other images are left out -> why
    notes: tuple[str, ...] = ()


def decide(title: str, nest: Nest, told: SplitFolders | None) -> Layout:
    """The layout of the tree `title`, as `told` by the settings where they say. Raises DataError where it is not clear."""
    top = _top(nest)
    if told == "none":
        return Layout({"train": _classes(nest, top)})
    if told is not None:
        return _with_splits(nest, _as_told(title, nest, top, told), {"": NOT_NAMED})
    found = _by_name(title, nest, top)
    if "train" in found:
        _refuse_train_as_class(title, nest, top, found)
        aside = {folder: NO_LABELS for folder in nest.filled(top) if _is_unlabelled(folder)}
        return _with_splits(nest, found, aside)
    turned = _turned(nest, top)
    if turned is not None:
        return turned
    _refuse_doubt(title, nest, top)
    return Layout({"train": _classes(nest, top)})


def _is_unlabelled(path: str) -> bool:
    words = telling(name_of(path))
    return len(words) == 1 and words[0] in UNLABELLED


def _split_of(path: str) -> str | None:
    return split_of_folder(name_of(path))


def _top(nest: Nest) -> str:
    """The folder that classes or splits lie in: the source itself, or the one folder that all else lies in."""
    top = ""
    while top not in nest.direct and len(nest.children.get(top, ())) == 1:
        (child,) = nest.children[top]
        if child in nest.direct or _split_of(child):
            break
        top = child
    return top


def _classes(nest: Nest, folder: str) -> Mapping[str, str]:
    return {name_of(child): child for child in nest.children.get(folder, ())}


# -- splits above classes


def _by_name(title: str, nest: Nest, top: str) -> Mapping[str, str]:
    """The folder of each split; none where no folder is named as the training split."""
    found: dict[str, str] = {}
    folders = sorted(nest.children.get(top, ()))
    splits = {folder: split for folder in folders if (split := _split_of(folder))}
    if "train" not in splits.values():
        if folders and len(splits) == len(folders):
            names = " and ".join(name_of(folder) for folder in folders)
            raise DataError(f"{title} holds {names}, but no training images: add a folder train")
        return {}
    for folder, split in splits.items():
        if split in found:
            raise DataError(f"{title} holds {found[split]}/ and {folder}/ for the same split: join them")
        found[split] = folder
    return found


def _as_told(title: str, nest: Nest, top: str, told: Mapping[Literal["train", "val", "test"], str]) -> Mapping[str, str]:
    """The folders that the settings name, below the top or below the source itself."""
    found: dict[str, str] = {}
    for split, name in told.items():
        folder = next((path for path in (f"{top}/{name}".strip("/"), name.strip("/")) if path and nest.images.get(path)), None)
        if folder is None:
            has = sentences.first([name_of(child) for child in nest.filled(top)], SHOWN) or "no folder with images"
            raise DataError(
                f"the setting splits names '{name}', no folder with images of {title}: name one that is there ({has})"
            )
        found[split] = folder
    for folder in found.values():
        if sum(other in (folder, *ancestors(folder)) for other in found.values()) > 1:
            raise DataError(f"the setting splits names {folder} for two splits: name a folder of its own for each")
    return found


def _with_splits(nest: Nest, found: Mapping[str, str], aside: Mapping[str, str]) -> Layout:
    """Images of other splits than train that lie in no class folder are left out."""
    classes: dict[str, Mapping[str, str]] = {}
    aside, places = dict(aside), {}
    for split in [split for split in SPLITS if split in found]:
        folder = _inner(nest, found[split], split, classes.get("train", {}))
        if split != "train" and folder in nest.direct and not nest.filled(folder):
            aside[found[split]] = NO_LABELS
        else:
            classes[split], places[split] = _classes(nest, folder), folder
    usual = all(place.casefold() == split for split, place in places.items())
    listed = ", ".join(f"{split} is {place}" for split, place in places.items())
    return Layout(classes, frozenset(found.values()), aside, () if usual else (f"folders of splits: {listed}",))


def _inner(nest: Nest, folder: str, split: str, train: Mapping[str, str]) -> str:
    """The folder itself, or the one in it that all its classes lie in: seg_train/seg_train, train/images, train/made-2024."""
    children = nest.children.get(folder, ())
    if folder in nest.direct or len(children) != 1 or name_of(children[0]) in train:
        return folder
    (child,) = children
    again = name_of(child) == name_of(folder) or _split_of(child) == split or not telling(name_of(child))
    above_classes = child not in nest.direct and bool(nest.filled(child))
    return _inner(nest, child, split, train) if again or above_classes else folder


def _turned(nest: Nest, top: str) -> Layout | None:
    """Splits below classes, cat/train and cat/test, where all classes have them."""
    classes = nest.filled(top)
    splits = {folder: {_split_of(child): child for child in nest.filled(folder)} for folder in classes}
    if (
        not classes
        or nest.direct & set(classes)
        or not all("train" in inside and None not in inside for inside in splits.values())
    ):
        return None
    if any(len(splits[folder]) < len(nest.filled(folder)) for folder in classes):
        return None  # two folders for one split
    found = {
        split: {name_of(folder): splits[folder][split] for folder in classes if split in splits[folder]}
        for split in SPLITS
        if any(split in inside for inside in splits.values())
    }
    return Layout(found, notes=(f"folders of splits: {', '.join(found)} in each class folder",))


# -- questions


def _refuse_train_as_class(title: str, nest: Nest, top: str, found: Mapping[str, str]) -> None:
    """A folder train full of images beside others that are no splits may be a class of vehicles."""
    train = found["train"]
    others = [folder for folder in nest.filled(top) if folder not in found.values() and not _is_unlabelled(folder)]
    if others and train in nest.direct and not nest.filled(train):
        text = f"{title} holds {name_of(train)} and {name_of(others[0])}, both full of images, which may be classes"
        raise DataError(f"{text}: say so with --splits none (prepare's setting splits: none), or make class folders in them")


def _refuse_doubt(title: str, nest: Nest, top: str) -> None:
    """Folders that hold folders of the same names may be splits, as a set of images without labels may be a class."""
    unlabelled = next((folder for folder in nest.filled(top) if _is_unlabelled(folder)), None)
    if unlabelled is not None:
        text = f"{title} holds {name_of(unlabelled)} beside class folders, as images without labels are called"
        raise DataError(f"{text}: remove it, or say that it is a class with --splits none (prepare's setting splits: none)")
    inside = {folder: nest.names(folder) for folder in nest.filled(top) if folder not in nest.direct}
    most = max(inside.values(), key=len, default=frozenset())
    alike = [folder for folder, names in inside.items() if _alike(names, most)]
    if len(alike) < 2:
        return
    raise DataError(_question(title, nest, alike, most))


def _alike(names: frozenset[str], most: frozenset[str]) -> bool:
    """One name in common, like images, says nothing."""
    common = len(names & most)
    return len(most) > 1 and (2 * common >= len(names | most) or common == len(names) > 0)


def _question(title: str, nest: Nest, folders: list[str], names: frozenset[str]) -> str:
    """With an answer that takes the folder of most images for training, unless its name is another split's."""
    train, other = sorted(folders, key=lambda folder: (_split_of(folder) is not None, -nest.images[folder]))[:2]
    answer = shlex.quote(f"train={name_of(train)},{_split_of(other) or 'test'}={name_of(other)}")
    listed = sentences.first([name_of(folder) for folder in folders], SHOWN)
    text = f"{title} holds {listed} with folders of the same names in them ({sentences.first(sorted(names), SHOWN)})"
    return (
        f"{text}: say whether they are splits, as with --splits {answer}, or classes, --splits none (prepare's setting splits)"
    )
