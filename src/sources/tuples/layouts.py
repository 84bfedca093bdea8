"""Tables of tuples as they lie on disk: rows of named columns, of the split that file names, folders or a column say.

CSV and text files with a header; Parquet and metadata.csv in folders as the Hugging Face hub has them; the JSON files of
Karpathy's splits of Flickr8k, Flickr30k and COCO beside the pictures, and the caption files that these are published with.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from src.ground.errors import DataError
from src.sources.words import split_of_file, split_of_folder

TABLES = (".csv", ".tsv", ".txt", ".parquet", ".json", ".jsonl")
DELIMITERS = ("\t", "|", ";", ",")
SPLIT = "split"
METADATA = "metadata"  # what the hub calls a table of the folder that it lies in
KARPATHY = {"restval": "train"}  # what his files call more of the training split


class NoTableError(DataError):
    """A folder holds no table."""


@dataclass(frozen=True)
class Row:
    """One row of a table."""

    table: Path
    number: int
    folder: Path  # below which the files lie that it names
    split: str | None
    values: Mapping[str, Any]

    @property
    def name(self) -> str:
        return f"{self.table} row {self.number}"


def rows(path: Path, most: int | None = None) -> list[Row]:
    """All rows of a table, or of the tables in a folder; at most so many of each table. Raises DataError."""
    if not path.exists():
        raise DataError(f"{path} does not exist: give the path of a table, or of a folder that holds one")
    tables = [path] if path.is_file() else _tables(path)
    if not tables:
        raise NoTableError(f"{path} holds no table with captions: add one, as CSV or Parquet, with a header of column names")
    return [row for table in tables for row in islice(_read(table, path), most)]


def _tables(folder: Path) -> list[Path]:
    """Karpathy's file goes before others, a metadata file of its folder before what else lies there."""
    found = [
        path
        for path in sorted(folder.rglob("*"))
        if path.suffix.lower() in TABLES and not path.name.startswith(".") and path.is_file()
    ]
    split = [path for path in found if path.suffix == ".json" and _is_karpathy(path)]
    told = [path for path in found if path.stem == METADATA]
    parquet = [path for path in found if path.suffix == ".parquet"]
    plain = [path for path in found if path.suffix not in (".json", ".parquet") and path.parent == folder and _has_header(path)]
    for several in (split, plain):
        if len(several) > 1 and not told and not parquet:
            raise DataError(
                f"{folder} holds several tables, {several[0].name} and {several[1].name}: give one of them as the source"
            )
    return next((some for some in (split, told, parquet, plain) if some), [])


def _is_karpathy(path: Path) -> bool:
    with path.open(encoding="utf-8", errors="replace") as file:
        return '"images"' in file.read(4096)


def _has_header(path: Path) -> bool:
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        header = file.readline()
    return any(delimiter in header for delimiter in DELIMITERS)


def _read(table: Path, source: Path) -> Iterator[Row]:
    inside = table.relative_to(source).parts[:-1] if source.is_dir() else ()
    above = next((s for part in inside if (s := split_of_folder(part))), None)
    split = split_of_file(table.stem) or above
    # other folders may have other files of the same names, which are of other splits
    folder = table.parent if source.is_file() or above or table.stem == METADATA else source
    for number, values in enumerate(_values(table), start=1):
        own = values.get(SPLIT)
        yield Row(table, number, folder, _split(own, f"{table} row {number}") if own else split, values)


def _split(told: str, who: str) -> str:
    found = KARPATHY.get(str(told)) or split_of_file(str(told))
    if found is None:
        raise DataError(f"{who} has the split '{told}': use train, val and test")
    return found


def _values(table: Path) -> Iterator[Mapping[str, Any]]:
    try:
        if table.suffix == ".parquet":
            yield from _parquet(table)
        elif table.suffix == ".json":
            yield from _karpathy(_json(table.read_text(encoding="utf-8")))
        elif table.suffix == ".jsonl":
            yield from (_object(line) for line in table.read_text(encoding="utf-8").split("\n") if line.strip())
        else:
            yield from _separated(table)
    except (ValueError, KeyError, TypeError, AttributeError, OSError, csv.Error) as error:
        raise DataError(f"{table} can't be read as a table ({error}): repair it, or write it again") from None


def _json(text: str) -> Any:
    """Raises ValueError, also where an escape is half a character, which no file can hold."""
    found = json.loads(text)
    if "\\ud" in text.lower():
        json.dumps(found, ensure_ascii=False).encode()
    return found


def _object(line: str) -> Mapping[str, Any]:
    found = _json(line)
    if not isinstance(found, dict):
        raise ValueError(f"a line is no object with named values: {line[:40]}")
    return found


def _karpathy(found: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    for image in found["images"]:
        folder = image.get("filepath")
        captions = [sentence["raw"] for sentence in image["sentences"]]
        name = f"{folder}/{image['filename']}" if folder else image["filename"]
        yield {"image": name, "caption": captions, SPLIT: image["split"]}


def _separated(table: Path) -> Iterator[Mapping[str, Any]]:
    with table.open(newline="", encoding="utf-8-sig") as file:
        header = file.readline()
        delimiter = next((one for one in DELIMITERS if one in header), ",")
        file.seek(0)
        reader = csv.DictReader(file, delimiter=delimiter, skipinitialspace=True)
        names = [name.strip() for name in reader.fieldnames or ()]
        if len(set(names)) < len(names):
            raise ValueError(f"two columns have one name in its header: {', '.join(names)}")
        for row in reader:
            if None in row or None in row.values():
                raise ValueError(f"a row has another number of columns than the header: {next(iter(row.values()))}")
            yield {name.strip(): value for name, value in row.items()}


def _parquet(table: Path) -> Iterator[Mapping[str, Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(table) as file:
            for batch in file.iter_batches(256):
                yield from batch.to_pylist()
    except pa.ArrowException as error:
        raise ValueError(str(error)) from None


def columns(found: Sequence[Row]) -> list[str]:
    """Of all tables, in the order of the first; without that of splits."""
    return [name for name in dict.fromkeys(name for row in found for name in row.values) if name != SPLIT]
