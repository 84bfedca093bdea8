"""Parquet in Hugging Face's layout: train-*.parquet, test-*.parquet and validation-*.parquet, or one file.

A row is an image, whose bytes stand in a column `image` or `img`, alone or in a struct {bytes, path}, and a label, an integer
in `label`, `labels`, `fine_label` or the only column of integers. Class names are those of the schema's ClassLabel.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from src.ground.errors import DataError
from src.io.sources import images
from src.io.sources.raw import Encoded, Labels, Raw, numbered
from src.io.sources.splits import SPLITS
from src.io.sources.trees import hidden, natural

IMAGES = ("image", "img")
LABELS = ("label", "labels", "fine_label")
ROWS = 256  # read at once


@dataclass(frozen=True)
class Columns:
    """Where a file's images and labels stand."""

    image: str
    label: str
    classes: tuple[str, ...] | None  # of the label


def files(folder: Path) -> tuple[Path, ...]:
    """Parquet files in the folder or in one of its folders."""
    found = (path for pattern in ("*.parquet", "*/*.parquet") for path in folder.glob(pattern))
    return tuple(path for path in found if not any(hidden(part) for part in path.relative_to(folder).parts))


def read(paths: Sequence[Path]) -> Raw:
    """Files are told apart by their names; one alone may have any. Raises DataError."""
    groups = _grouped(paths)
    columns = _columns(groups["train"][0])
    splits = {split: _split(group, columns) for split, group in groups.items()}
    return Raw(columns.classes or numbered({split: value.labels for split, value in splits.items()}), splits)


def _grouped(paths: Sequence[Path]) -> Mapping[str, list[Path]]:
    """Files by split, parts in natural order."""
    if len({path.parent for path in paths}) > 1:
        folders = ", ".join(sorted({str(path.parent) for path in paths}))
        raise DataError(f"Parquet files lie in several folders ({folders}): name the one to read")
    groups: dict[str, list[Path]] = {}
    for path in sorted(paths, key=lambda path: natural(path.name)):
        split = SPLITS.get(re.split("[-_.]", path.name)[0].casefold(), "train" if len(paths) == 1 else None)
        if split is None:
            raise DataError(f"the name of {path} says no split: call it train-..., test-... or validation-...")
        groups.setdefault(split, []).append(path)
    if "train" not in groups:
        raise DataError(f"{paths[0].parent} holds no training split: add train-00000-of-00001.parquet")
    return groups


def _split(paths: Sequence[Path], columns: Columns) -> Encoded:
    labels = [_labels(path, columns) for path in paths]
    names = [f"{path} row {row}" for path, values in zip(paths, labels, strict=True) for row in range(len(values))]
    counts = [len(values) for values in labels]
    return Encoded(names, np.concatenate(labels), lambda: enumerate(_streams(paths, counts, columns)))


def _labels(path: Path, columns: Columns) -> Labels:
    found = _columns(path)
    if found != columns:
        raise DataError(f"{path} has other columns or classes than the first file: give all files the same")
    with _opened(path) as file:
        values = file.read([columns.label]).column(0)
    if values.null_count:
        raise DataError(f"{path} lacks {values.null_count} of its labels: give each row one")
    return np.asarray(values.to_numpy()).astype(np.int64)


def _streams(paths: Sequence[Path], counts: Sequence[int], columns: Columns) -> Iterator[BinaryIO]:
    """Every image; raises DataError where a file has not so many of them as labels, as damaged ones may."""
    for path, count in zip(paths, counts, strict=True):
        left = count
        with _opened(path) as file:
            for batch in file.iter_batches(ROWS, columns=[columns.image]):
                left -= batch.num_rows
                if left < 0:
                    break
                for value in batch.column(0):
                    found = value.as_py()
                    content = found.get("bytes") if isinstance(found, dict) else found
                    yield io.BytesIO(content) if content else images.Absent(_path_of(found))
        if left:
            raise DataError(f"{path} is damaged, as it has not as many images as labels: write or download it again")


def _path_of(found: object) -> str:
    """Why a row has no image to read."""
    path = found.get("path") if isinstance(found, dict) else None
    return f"it holds no bytes, only the path {path}: write the images' bytes into the file" if path else "it is empty"


def _columns(path: Path) -> Columns:
    """The columns of the file's schema. Raises DataError, naming those it has, where they are not clear."""
    with _opened(path) as file:
        schema = file.schema_arrow
    image = next((name for name in IMAGES if name in schema.names and _holds_bytes(schema.field(name).type)), None)
    integers = [field.name for field in schema if pa.types.is_integer(field.type)]
    label = next((name for name in LABELS if name in integers), integers[0] if len(integers) == 1 else None)
    if image is None or label is None:
        has = ", ".join(f"{field.name} ({field.type})" for field in schema)
        wanted = "images as bytes in a column image or img" if image is None else "labels as integers in a column label"
        raise DataError(f"{path} has the columns {has}: it needs {wanted}")
    return Columns(image, label, _class_names(schema, label))


def _holds_bytes(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return any(field.name == "bytes" and _holds_bytes(field.type) for field in kind)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _class_names(schema: pa.Schema, label: str) -> tuple[str, ...] | None:
    """Names of the label's classes, where the schema carries them."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return tuple(str(name) for name in features[label]["names"])
    except (KeyError, TypeError, ValueError):
        return None


@contextmanager
def _opened(path: Path) -> Iterator[pq.ParquetFile]:
    try:
        with pq.ParquetFile(path) as file:
            yield file
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:  # the last: a column's name is damaged
        raise DataError(f"{path} can't be read as Parquet ({error}): write or download it again") from None
