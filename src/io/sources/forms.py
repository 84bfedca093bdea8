"""What a path holds: a published data set, IDX files, Parquet, .npz, an archive, or an image folder; the first that fits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from src.ground.errors import DataError
from src.io.sources import archives, arrays, idx, layouts, parquet, published
from src.io.sources.joined import Joined
from src.io.sources.raw import Raw
from src.io.sources.trees import Folder, hidden
from src.io.sources.words import split_of

ACCEPTED = "an image folder, a .zip or .tar of one, .npz, Parquet or IDX files"


def read(path: Path, label_column: str | None = None) -> Raw:
    """`label_column` is that of a table. Raises DataError where the path holds no form of data set, or a damaged one."""
    if not path.exists():
        raise DataError(f"the source {path} does not exist: give the path of {ACCEPTED}")
    if label_column is not None and not parquet.files(path):
        raise DataError(f"the source {path} is no Parquet, and has no column {label_column}: leave label_column out")
    if path.is_dir():
        return _read_folder(path, label_column)
    suffix = path.suffix.casefold()
    if suffix == ".parquet":
        return parquet.read(path, label_column)
    if suffix == ".npz":
        return arrays.read([path])
    if archives.is_archive(path):
        return layouts.read(archives.tree(path))
    if idx.is_one(path):
        return idx.read(path)
    raise DataError(f"the source {path} is of no known form: give the path of {ACCEPTED}")


def _read_folder(folder: Path, label_column: str | None) -> Raw:
    above = folder.parent if folder.name in published.FOLDERS else folder
    for reader in published.READERS.values():
        found = reader(above)
        if found is not None:
            return found
    place = idx.place_of(folder)
    if place is not None:
        return _beside(folder, idx.read(place), idx.files(place))
    tables = parquet.files(folder)
    if tables:
        return _beside(folder, parquet.read(folder, label_column), tables)
    files = _whole_files(folder)
    if not files:
        return layouts.read(Folder(folder))
    return _beside(folder, _read_splits(folder, files) if len(files) > 1 else read(files[0]), files)


def _beside(folder: Path, found: Raw, used: Sequence[Path]) -> Raw:
    """With all other files of the folder as left out."""
    others = (path for path in sorted(folder.rglob("*")) if path not in used and path.is_file())
    names = (path.relative_to(folder) for path in others)
    left_out = {name.as_posix(): f"beside {used[0].name}" for name in names if not any(map(hidden, name.parts))}
    return replace(found, left_out={**found.left_out, **left_out})


def _whole_files(folder: Path) -> list[Path]:
    """Files that hold a data set or a split of one; archives count only where no folder stands beside them."""
    visible = [path for path in sorted(folder.iterdir()) if not hidden(path.name)]
    packed = [path for path in visible if archives.is_archive(path)]
    unpacked = any(path.is_dir() for path in visible)
    return [path for path in visible if path.suffix.casefold() == ".npz"] or ([] if unpacked else packed)


def _read_splits(folder: Path, files: Sequence[Path]) -> Raw:
    """Files whose names say which split is in them."""
    told = [split_of(path.name) for path in files]
    if "train" in told and None not in told:
        if not archives.is_archive(files[0]):
            return arrays.read(files)
        if len(set(told)) == len(told):
            return layouts.read(Joined(folder, {str(s): archives.tree(path) for s, path in zip(told, files, strict=True)}))
    raise DataError(f"{folder} holds {', '.join(path.name for path in files)}: name the one to read as the source")
