"""Known data sets as they are published and as torchvision keeps them: each reader returns None where its folder is not there.

CIFAR's files are pickles, which can run code when they are loaded: torchvision loads them only after it has checked their
MD5 digests. The other data sets are plain numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from src.ground.errors import DataError
from src.sources import idx, imagenet
from src.sources.raw import Plain, Raw

DIGITS = tuple("0123456789")
CLASSES: Mapping[str, tuple[str, ...]] = {  # in the order of their numbers
    "mnist": DIGITS,
    "fashion_mnist": (
        "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
    ),
    "kmnist": ("o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo"),
    "svhn": DIGITS,
    "cifar10": ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
    "cifar100": (
        "apple", "aquarium_fish", "baby", "bear", "beaver", "bed", "bee", "beetle", "bicycle", "bottle", "bowl", "boy",
        "bridge", "bus", "butterfly", "camel", "can", "castle", "caterpillar", "cattle", "chair", "chimpanzee", "clock",
        "cloud", "cockroach", "couch", "crab", "crocodile", "cup", "dinosaur", "dolphin", "elephant", "flatfish", "forest",
        "fox", "girl", "hamster", "house", "kangaroo", "keyboard", "lamp", "lawn_mower", "leopard", "lion", "lizard",
        "lobster", "man", "maple_tree", "motorcycle", "mountain", "mouse", "mushroom", "oak_tree", "orange", "orchid",
        "otter", "palm_tree", "pear", "pickup_truck", "pine_tree", "plain", "plate", "poppy", "porcupine", "possum",
        "rabbit", "raccoon", "ray", "road", "rocket", "rose", "sea", "seal", "shark", "shrew", "skunk", "skyscraper",
        "snail", "snake", "spider", "squirrel", "streetcar", "sunflower", "sweet_pepper", "table", "tank", "telephone",
        "television", "tiger", "tractor", "train", "trout", "tulip", "turtle", "wardrobe", "whale", "willow_tree", "wolf",
        "woman", "worm",
    ),
    "stl10": ("airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck"),
    **{name: tuple(ids.values()) for name, ids in imagenet.SUBSETS.items()},
}  # fmt: skip
SPLITS = ("train", "test")
FOLDERS = frozenset({"cifar-10-batches-py", "cifar-100-python", "stl10_binary", imagenet.TINY})


def read_cifar10(folder: Path) -> Raw | None:
    return _cifar(folder, "cifar-10-batches-py", "CIFAR10")


def read_cifar100(folder: Path) -> Raw | None:
    return _cifar(folder, "cifar-100-python", "CIFAR100")


def read_stl10(folder: Path) -> Raw | None:
    """The labelled images of 96x96."""
    if not (folder / "stl10_binary").is_dir():
        return None
    from torchvision.datasets import STL10

    with _as_published(folder / "stl10_binary"):
        found = {split: STL10(str(folder), split=split) for split in SPLITS}
    return Raw(tuple(found["train"].classes), {split: _plain(v.data, v.labels) for split, v in found.items()})


def read_svhn(folder: Path) -> Raw | None:
    """The cropped digits of 32x32, without the extra ones."""
    if not (folder / "train_32x32.mat").is_file():
        return None
    from torchvision.datasets import SVHN

    with _as_published(folder):
        found = {split: SVHN(str(folder), split=split) for split in SPLITS}
    return Raw(DIGITS, {split: _plain(v.data, v.labels) for split, v in found.items()})


def read_mnist(folder: Path) -> Raw | None:
    return _idx(folder, "MNIST", "mnist")


def read_fashion_mnist(folder: Path) -> Raw | None:
    return _idx(folder, "FashionMNIST", "fashion_mnist")


def read_kmnist(folder: Path) -> Raw | None:
    return _idx(folder, "KMNIST", "kmnist")


READERS: Mapping[str, Callable[[Path], Raw | None]] = {
    "mnist": read_mnist,
    "fashion_mnist": read_fashion_mnist,
    "kmnist": read_kmnist,
    "svhn": read_svhn,
    "cifar10": read_cifar10,
    "cifar100": read_cifar100,
    "stl10": read_stl10,
    "tiny_imagenet": imagenet.read_tiny,
}


def with_classes(found: Raw, classes: tuple[str, ...]) -> Raw | None:
    """The same images under these names of their classes, and in this order; None where they are of other classes.

    They may have the numbers 0, 1, ... as names, or names that differ in case and punctuation.
    """
    if found.classes == tuple(map(str, range(len(classes)))):
        return replace(found, classes=classes)
    wanted, own = ([_letters(name) for name in names] for names in (classes, found.classes))
    if sorted(own) != sorted(wanted):
        return None
    places = np.array([wanted.index(name) for name in own], np.int64)
    splits = {split: replace(value, labels=places[value.labels]) for split, value in found.splits.items()}
    return replace(found, classes=classes, splits=splits)


def _letters(name: str) -> str:
    return "".join(char for char in name.casefold() if char.isalnum())


def _cifar(folder: Path, below: str, kind: str) -> Raw | None:
    if not (folder / below).is_dir():
        return None
    from torchvision import datasets

    with _as_published(folder / below):
        found = {split: getattr(datasets, kind)(str(folder), train=split == "train") for split in SPLITS}
    splits = {split: Plain(value.data, np.asarray(value.targets, np.int64)) for split, value in found.items()}
    return Raw(tuple(found["train"].classes), splits)


def _idx(folder: Path, below: str, name: str) -> Raw | None:
    raw = folder / below / "raw"
    return idx.read(raw, CLASSES[name]) if idx.is_here(raw) else None


def _plain(images: Any, labels: Any) -> Plain:
    """From (N, C, H, W)."""
    return Plain(np.asarray(images).transpose(0, 2, 3, 1), np.asarray(labels).astype(np.int64))


@contextmanager
def _as_published(folder: Path) -> Iterator[None]:
    try:
        yield
    except RuntimeError:  # what torchvision raises where a digest differs
        text = f"{folder} lacks files, or holds others than were published, which are not opened"
        raise DataError(f"{text}: remove the folder, and download it again") from None
