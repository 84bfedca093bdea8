"""Parquet as the Hugging Face hub stores data sets of images: files or folders whose names say the split, or one file.

A row is an image, whose bytes stand in a column alone or in a struct {bytes, path}, and a label: a whole number, which the
schema's ClassLabel may name, or a text. Which columns these are, the module `columns` says.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from src.ground.errors import DataError
from src.sources import columns, images
from src.sources.columns import Columns
from src.sources.labels import Values, classed
from src.sources.raw import SPLITS, Encoded, Labels, Raw
from src.sources.trees import natural
from src.sources.words import split_of_file

ROWS = 256  # read at once
PART = re.compile(r"(part[-_])?\d")  # how the names of parts of one table begin


def read(folder: Path, tables: Sequence[Path], label: str | None = None) -> Raw:
    """Files below a folder, told apart by their names and those of their folders; one alone may have any.

    `label` is the column of labels, where it is given. Raises DataError.
    """
    groups = _grouped(folder, tables)
    found, notes = _columns(groups["train"][0], label)
    values = {split: [_values(part, found, label) for part in group] for split, group in groups.items()}
    known = classed({split: [v for part in parts for v in part] for split, parts in values.items()}, found.names)
    splits = {s: _split(group, [len(part) for part in values[s]], known.labels[s], found) for s, group in groups.items()}
    return Raw(known.classes, splits, notes=(*notes, *known.notes))


def _grouped(folder: Path, paths: Sequence[Path]) -> Mapping[str, list[Path]]:
    """Files by split, parts in natural order. Raises DataError where several data sets are there, or no split is said."""
    ordered = sorted(paths, key=lambda path: natural(path.relative_to(folder).as_posix()))
    above = {path: path.relative_to(folder).parts[:-1] for path in ordered}
    sets = dict.fromkeys(folder.joinpath(*(name for name in above[path] if not split_of_file(name))) for path in ordered)
    if len(sets) > 1:
        places = " or ".join(str(place) for place in sets if place != folder)
        raise DataError(f"{folder} holds several Parquet data sets: give the one to read as the source, {places}")
    told = {path: next(filter(None, map(split_of_file, (path.stem, *reversed(above[path])))), None) for path in ordered}
    if len(ordered) == 1 or (not any(told.values()) and all(PART.match(path.name) for path in ordered)):
        return {"train": ordered}
    untold = [path for path in ordered if told[path] is None]
    if untold:
        raise DataError(f"the name of {untold[0]} says no split: call it train-..., test-... or validation-...")
    if "train" not in told.values():
        raise DataError(f"{folder} holds no training split: add train-00000-of-00001.parquet")
    return {split: [path for path in ordered if told[path] == split] for split in SPLITS if split in told.values()}


def _split(paths: Sequence[Path], counts: Sequence[int], labels: Labels, found: Columns) -> Encoded:
    names = [f"{path} row {row}" for path, count in zip(paths, counts, strict=True) for row in range(count)]
    return Encoded(names, labels, lambda: enumerate(_streams(paths, counts, found)))


def _columns(path: Path, label: str | None) -> tuple[Columns, tuple[str, ...]]:
    with _opened(path) as file:
        return columns.chosen(path, file.schema_arrow, label)


def _values(path: Path, columns: Columns, label: str | None) -> Values:
    """The labels of a file, whose columns must be those of the first."""
    if _columns(path, label)[0] != columns:
        raise DataError(f"{path} has other columns or classes than the first file: give all files the same")
    with _opened(path) as file:
        values = file.read([columns.label]).column(0)
        values = values.cast(values.type.value_type) if pa.types.is_dictionary(values.type) else values
        try:
            found: Values = values.cast(pa.large_string() if columns.texts else pa.int64()).to_pylist()
        except pa.ArrowInvalid:  # fractions, or numbers beyond 64 bits
            raise DataError(f"{path} has labels in {columns.label} that are no whole numbers: number the classes") from None
    missing = sum(value is None or (isinstance(value, str) and not value.strip()) for value in found)
    if missing:
        raise DataError(f"{path} lacks {missing} of its labels: give each row one")
    return found


def _streams(paths: Sequence[Path], counts: Sequence[int], columns: Columns) -> Iterator[io.BytesIO]:
    """Every image; raises DataError where a file has not so many of them as labels, as damaged ones may."""
    for path, count in zip(paths, counts, strict=True):
        left = count
        with _opened(path) as file:
            for batch in file.iter_batches(ROWS, columns=[columns.image]):
                left -= batch.num_rows
                if left < 0:
                    break
                for value in batch.column(0):
                    yield _stream(value.as_py())
        if left:
            raise DataError(f"{path} is damaged, as it has not as many images as labels: write or download it again")


def _stream(value: Mapping[str, Any] | bytes | None) -> io.BytesIO:
    content = value.get("bytes") if isinstance(value, Mapping) else value
    if content:
        return io.BytesIO(content)
    path = value.get("path") if isinstance(value, Mapping) else None
    told = f"it holds no bytes, only the path {path}: write the images' bytes into the file"
    return images.Absent(told if path else "it is empty")


@contextmanager
def _opened(path: Path) -> Iterator[pq.ParquetFile]:
    try:
        with pq.ParquetFile(path) as file:
            yield file
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:  # the last: a column's name is damaged
        raise DataError(f"{path} can't be read as Parquet ({error}): write or download it again") from None
