"""Known data sets as they are published and as torchvision keeps them: each reader returns None where its folder is not there.

CIFAR's files are pickles, which can run code when they are loaded: torchvision loads them only after it has checked their
MD5 digests. The other data sets are plain numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from src.ground.errors import DataError
from src.io.sources import idx, imagenet
from src.io.sources.raw import Plain, Raw

DIGITS = tuple("0123456789")
IDX_CLASSES: Mapping[str, tuple[str, ...]] = {
    "mnist": DIGITS,
    "fashion_mnist": (
        "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
    ),
    "kmnist": ("o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo"),
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
    return idx.read(raw, IDX_CLASSES[name]) if idx.is_here(raw) else None


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
