"""MNIST's IDX files, plain or gzipped: train-images-idx3-ubyte, train-labels-idx1-ubyte, and t10k-... for the test split."""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from pathlib import Path

import numpy as np

from src.ground.errors import DataError
from src.io.sources.raw import Bytes, Plain, Raw, numbered

PREFIXES = {"train": "train", "test": "t10k"}
KINDS = {"images": "idx3-ubyte", "labels": "idx1-ubyte"}
UNSIGNED_BYTES = 8  # IDX's code of the type


def is_here(folder: Path) -> bool:
    """Whether the folder holds images of a training split."""
    return _file(folder, "train", "images") is not None


def read(folder: Path, classes: tuple[str, ...] | None = None) -> Raw:
    """Classes are numbers where they are not given. Raises DataError where a file is missing or damaged."""
    splits = {split: _split(folder, split) for split in PREFIXES if split == "train" or _file(folder, split, "images")}
    return Raw(classes or numbered({split: value.labels for split, value in splits.items()}), splits)


def _split(folder: Path, split: str) -> Plain:
    images, labels = (_file(folder, split, kind) for kind in KINDS)
    if images is None or labels is None:
        lacking = f"{PREFIXES[split]}-{'labels-idx1' if images else 'images-idx3'}-ubyte"
        raise DataError(f"{folder} lacks {lacking}: put it there, plain or as .gz")
    return Plain(_array(images, 3)[..., None], _array(labels, 1).astype(np.int64))


def _file(folder: Path, split: str, kind: str) -> Path | None:
    stem = f"{PREFIXES[split]}-{kind}"
    names = (f"{stem}{joint}{KINDS[kind]}{suffix}" for joint in "-." for suffix in ("", ".gz"))
    return next((folder / name for name in names if (folder / name).is_file()), None)


def _array(path: Path, dimensions: int) -> Bytes:
    """The file's array: a magic number that holds type and dimensions, each length in four bytes, then the values."""
    content = _content(path)
    if len(content) < 4 + 4 * dimensions or content[:4] != bytes((0, 0, UNSIGNED_BYTES, dimensions)):
        raise DataError(f"{path} is no IDX file of bytes in {dimensions} dimensions: download it again")
    shape = struct.unpack_from(f">{dimensions}I", content, 4)
    values = np.frombuffer(content, np.uint8, offset=4 + 4 * dimensions)
    if len(values) != math.prod(shape):
        raise DataError(f"{path} holds {len(values)} values, but says {math.prod(shape)}: download it again")
    return values.reshape(shape)


def _content(path: Path) -> bytes:
    try:
        return gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise DataError(f"{path} is damaged ({error}): download it again") from None
