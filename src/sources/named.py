"""The source that settings name: a known data set, looked for on this machine before it is downloaded, or a path."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path

import numpy as np

from src.ground.errors import DataError
from src.settings.datasets import Dataset
from src.sources import downloads, forms, imagenet, published, sentences
from src.sources.forms import NOTHING, Told
from src.sources.raw import Plain, Raw
from src.sources.trees import hidden
from src.store.store import Store

FOLDER = Store().data / "sources"
VARIABLE = "AST_DATA"  # names a folder of data sets
SYSTEM = {"fashion_mnist": Path("/usr/share/datasets/fashion-mnist")}  # of Debian's package dataset-fashion-mnist
READERS: Mapping[str, Callable[[Path], Raw | None]] = {
    **published.READERS,
    **{name: partial(imagenet.read_subset, subset=name) for name in imagenet.SUBSETS},
}
KNOWN = ("digits", *READERS)
SHOWN = 3  # classes that a sentence names


def read(settings: Dataset) -> Raw:
    """The known data set of the source's name, else what it names as a path, from where the settings say. Raises DataError."""
    source, told = settings.source, Told(settings.splits, settings.label_column)
    if settings.path is not None:
        return _placed(source, Path(settings.path).expanduser(), told)
    if source in KNOWN:
        told.check(source)
        return read_digits() if source == "digits" else _find(source) or _fetched(source)
    path = Path(source).expanduser()
    if not path.exists() and path.name == source:
        known = ", ".join(KNOWN)
        raise DataError(f"'{source}' is no known data set ({known}), nor a path that exists: name one, or give a path")
    source = next((name for name in READERS if downloads.is_archive_of(name, path)), source)
    return _placed(source, path, told)


def read_digits() -> Raw:
    """scikit-learn's digits: 1,797 grey images of 8x8 with 17 levels, installed with the package."""
    from sklearn.datasets import load_digits

    found = load_digits()
    split = Plain(found.images.astype(np.uint8)[..., None], found.target.astype(np.int64))
    return Raw(tuple(str(name) for name in found.target_names), {"train": split}, pixel_max=16)


def _find(name: str) -> Raw | None:
    """From the first place on this machine that has it; in a folder of its own name any form will do."""
    for base in _bases():
        own = base / name
        found = _published(name, own) or (_known_form(name, own) if _is_filled(own) else None) or READERS[name](base)
        if found is not None:
            return found
    return _any_form(name, SYSTEM[name])[0] if name in SYSTEM and SYSTEM[name].is_dir() else None


def _placed(name: str, path: Path, told: Told) -> Raw:
    """From the place that the settings name, in any form. Raises DataError where it holds another data set."""
    if name == "digits":
        raise DataError("digits come with scikit-learn, and are read from no other place: leave out the path")
    if name not in READERS:
        return forms.read(path, told)
    found = _published(name, path.parent if path.name in published.FOLDERS or downloads.is_archive_of(name, path) else path)
    if found is not None:
        told.check(path)
        return found
    return _known_form(name, path, told)


def _known_form(name: str, path: Path, told: Told = NOTHING) -> Raw:
    """What is there, in any form. Raises DataError where it is another data set."""
    found, is_known = _any_form(name, path, told)
    if not is_known:
        listed = sentences.first(found.classes, SHOWN)
        text = f"{path} holds the classes {listed}, not those of {name} ({sentences.first(published.CLASSES[name], SHOWN)})"
        raise DataError(f"{text}: name a place of {name}, or give the path as the source")
    return found


def _published(name: str, own: Path) -> Raw | None:
    """From a folder that holds the data set's published files, packed or not."""
    found = READERS[name](own)
    if found is None and downloads.is_packed(name, own):
        downloads.unpack(name, own)
        found = READERS[name](own)
    return found


def _bases() -> Iterator[Path]:
    yield FOLDER
    if os.environ.get(VARIABLE):
        yield Path(os.environ[VARIABLE]).expanduser()


def _is_filled(folder: Path) -> bool:
    return folder.is_dir() and any(not hidden(path.name) for path in folder.iterdir())


def _any_form(name: str, path: Path, told: Told = NOTHING) -> tuple[Raw, bool]:
    """What is there, under the known names of its classes, and whether these could be given to it."""
    found = forms.read(path, told)
    known = published.with_classes(found, published.CLASSES[name]) if name in published.CLASSES else found
    return known or found, known is not None


def _fetched(name: str) -> Raw:
    """Downloaded to its folder of data/sources. Raises DataError, with what to provide instead, where that can't be."""
    places = f"put it into {FOLDER / name}, or name the folder above such a one in the environment variable {VARIABLE}"
    if not downloads.can_fetch(name):
        text = f"{name} is a subset of ImageNet, whose licence forbids downloads"
        places = f"into {FOLDER / imagenet.IMAGENET}, or into imagenet of the folder that {VARIABLE} names"
        raise DataError(f"{text}: put ImageNet's train/WNID and val/WNID folders {places}")
    try:
        downloads.fetch(name, FOLDER / name)
    except DataError as error:
        raise DataError(f"{error}: {places}, as published, or as {forms.ACCEPTED}") from None
    found = READERS[name](FOLDER / name)
    if found is None:
        raise DataError(f"the download of {name} lacks its files: remove {FOLDER / name}, and try again")
    return found
