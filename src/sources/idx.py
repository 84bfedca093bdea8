"""IDX files as MNIST's, plain or gzipped: train-images-idx3-ubyte, train-labels-idx1-ubyte, and t10k-... for the test split.

Other data sets put their name before it. EMNIST's six, emnist-letters-train-images-idx3-ubyte and so on, are known by their
classes, and have their images transposed; of QMNIST's eight columns of labels the first is the class.
"""

from __future__ import annotations

import gzip
import math
import re
import string
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from src.ground.errors import DataError
from src.sources.labels import Value, classed
from src.sources.raw import Plain, Raw

NAME = re.compile(r"(?P<prefix>(?:.*[-_.])?)(?P<split>train|t10k|test)-(?P<kind>images|labels)[-.]idx\d-(?:ubyte|int)(?:\.gz)?")
SPLITS = {"train": "train", "t10k": "test", "test": "test"}
PLACES = ("", "raw", "gzip", "EMNIST/raw", "QMNIST/raw")  # below a folder, as the files are published or torchvision keeps them
TYPES = {8: "u1", 9: "i1", 11: ">i2", 12: ">i4"}  # whole numbers, by IDX's code
QMNIST = "qmnist-"
_MERGED = (*string.digits, *string.ascii_uppercase, *(f"lowercase {letter}" for letter in "abdefghnqrt"))
EMNIST: Mapping[str, Mapping[Value, str]] = {
    "emnist-digits-": dict(enumerate(string.digits)),
    "emnist-mnist-": dict(enumerate(string.digits)),
    "emnist-letters-": dict(enumerate(string.ascii_uppercase, start=1)),
    "emnist-balanced-": dict(enumerate(_MERGED)),
    "emnist-bymerge-": dict(enumerate(_MERGED)),
    "emnist-byclass-": dict(
        enumerate((*string.digits, *string.ascii_uppercase, *(f"lowercase {letter}" for letter in string.ascii_lowercase)))
    ),
}


@dataclass(frozen=True)
class Files:
    """Files of one data set in a folder."""

    folder: Path
    prefix: str
    paths: Mapping[tuple[str, str], Path]  # (split, "images" or "labels")


def is_one(path: Path) -> bool:
    """Whether a file is called as one of IDX."""
    return NAME.fullmatch(path.name) is not None


def is_here(folder: Path) -> bool:
    """Whether the folder holds images of a training split."""
    return any(("train", "images") in files.paths for files in _sets(folder))


def files(folder: Path) -> tuple[Path, ...]:
    """Those that the folder's names say are of IDX."""
    return tuple(path for path in folder.glob("*idx*") if is_one(path))


def place_of(folder: Path) -> Path | None:
    """The folder itself or the one in it that holds IDX files."""
    return next((folder / place for place in PLACES if is_here(folder / place)), None)


def read(path: Path, names: tuple[str, ...] | None = None) -> Raw:
    """From a folder with the files of one data set, or from one of them; `names` are those of the labels 0, 1, ...

    Raises DataError where a file is missing or damaged, or the folder holds several data sets.
    """
    files = _chosen(path)
    known: Mapping[Value, str] | None = dict(enumerate(names)) if names else EMNIST.get(files.prefix)
    splits = [split for split in ("train", "test") if split == "train" or (split, "images") in files.paths]
    found = classed({split: _labels(files, split).tolist() for split in splits}, known)
    turned = files.prefix in EMNIST
    images = {split: _array(_file(files, split, "images"), 3, ("u1",)) for split in splits}
    upright = {split: (value.transpose(0, 2, 1) if turned else value)[..., None] for split, value in images.items()}
    notes = (*found.notes, *(("EMNIST stores its images transposed: they are turned upright",) if turned else ()))
    return Raw(found.classes, {s: Plain(upright[s], found.labels[s]) for s in splits}, notes=notes)


def _sets(folder: Path) -> list[Files]:
    """By their names before the split; of a file that lies there plain and gzipped the plain one."""
    sets: dict[str, dict[tuple[str, str], Path]] = {}
    for path in sorted(folder.glob("*idx*"), key=lambda path: (path.suffix == ".gz", path.name)):
        match = NAME.fullmatch(path.name)
        if match and path.is_file():
            sets.setdefault(match["prefix"], {}).setdefault((SPLITS[match["split"]], match["kind"]), path)
    return [Files(folder, prefix, paths) for prefix, paths in sorted(sets.items())]


def _chosen(path: Path) -> Files:
    if path.is_dir():
        sets = [files for files in _sets(path) if ("train", "images") in files.paths]
        if len(sets) > 1:
            choices = ", ".join(str(files.paths["train", "images"]) for files in sets)
            raise DataError(f"{path} holds IDX files of several data sets: give one of these files as the source, {choices}")
        return sets[0]
    match = NAME.fullmatch(path.name)
    return next(files for files in _sets(path.parent) if match and files.prefix == match["prefix"])


def _file(files: Files, split: str, kind: str) -> Path:
    if (split, kind) not in files.paths:
        name = "train" if split == "train" else "test" if files.prefix else "t10k"
        lacking = f"{files.prefix}{name}-{'images-idx3' if kind == 'images' else 'labels-idx1'}-ubyte"
        raise DataError(f"{files.folder} lacks {lacking}: put it there, plain or as .gz")
    return files.paths[split, kind]


def _labels(files: Files, split: str) -> NDArray[Any]:
    path = _file(files, split, "labels")
    return _array(path, 2)[:, 0] if files.prefix == QMNIST else _array(path, 1)


def _array(path: Path, dimensions: int, types: tuple[str, ...] = tuple(TYPES.values())) -> NDArray[Any]:
    """The file's array: a magic number that holds type and dimensions, each length in four bytes, then the values."""
    content = _content(path)
    kind = TYPES.get(content[2]) if content[:2] == bytes(2) and len(content) >= 4 + 4 * dimensions else None
    if kind not in types or content[3] != dimensions:
        raise DataError(f"{path} is no IDX file of whole numbers in {dimensions} dimensions: download it again")
    shape = struct.unpack_from(f">{dimensions}I", content, 4)
    size = np.dtype(kind).itemsize
    if len(content) - 4 - 4 * dimensions != size * math.prod(shape):
        held = (len(content) - 4 - 4 * dimensions) // size
        raise DataError(f"{path} holds {held} values, but says {math.prod(shape)}: download it again")
    return np.frombuffer(content, kind, offset=4 + 4 * dimensions).reshape(shape)


def _content(path: Path) -> bytes:
    try:
        return gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise DataError(f"{path} is damaged ({error}): download it again") from None
