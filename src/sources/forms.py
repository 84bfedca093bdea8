"""What a path holds: a published data set, IDX files, Parquet, .npz, an archive, or an image folder; the first that fits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from src.ground.errors import DataError
from src.settings.datasets import SplitFolders
from src.sources import archives, arrays, idx, layouts, published
from src.sources.joined import Joined
from src.sources.raw import Raw
from src.sources.trees import Folder, hidden, natural
from src.sources.words import split_of_file

ACCEPTED = "an image folder, a .zip or .tar of one, .npz, Parquet or IDX files"
TAKEN_BY = {"splits": "image folders", "label_column": "Parquet"}  # the one form that a setting is for
TABLE = ".parquet"


@dataclass(frozen=True)
class Told:
    """What the settings say of a source; None where they leave it to the source."""

    splits: SplitFolders | None = None
    label_column: str | None = None

    def check(self, source: object, form: str = "") -> None:
        """Raises DataError where settings are not for a source of this form."""
        for name, value in asdict(self).items():
            if value is not None and TAKEN_BY[name] != form:
                raise DataError(f"the setting {name} is for {TAKEN_BY[name]}, not for {source}: take it out")


NOTHING = Told()


def read(path: Path, told: Told = NOTHING) -> Raw:
    """Raises DataError where the path holds no form of data set, or a damaged one, or one that `told` is not for."""
    if not path.exists():
        raise DataError(f"the source {path} does not exist: give the path of {ACCEPTED}")
    if path.is_dir():
        return _read_folder(path, told)
    if archives.is_archive(path):
        told.check(path, "image folders")
        return layouts.read(archives.tree(path), told.splits)
    suffix = path.suffix.casefold()
    if suffix == TABLE:
        return _read_tables(path, [path], told)
    told.check(path)
    if suffix == ".npz":
        return arrays.read([path])
    if idx.is_one(path):
        return idx.read(path)
    raise DataError(f"the source {path} is of no known form: give the path of {ACCEPTED}")


def _read_folder(folder: Path, told: Told) -> Raw:
    above = folder.parent if folder.name in published.FOLDERS else folder
    for reader in published.READERS.values():
        found = reader(above)
        if found is not None:
            told.check(folder)
            return found
    place = idx.place_of(folder)
    if place is not None:
        told.check(folder)
        return _beside(folder, idx.read(place), idx.files(place))
    tables = _tables(folder)
    if tables:
        return _beside(folder, _read_tables(folder, tables, told), tables)
    files = _whole_files(folder)
    if files:
        return _beside(folder, _read_splits(folder, files, told) if len(files) > 1 else read(files[0], told), files)
    told.check(folder, "image folders")
    return layouts.read(Folder(folder), told.splits)


def _beside(folder: Path, found: Raw, used: Sequence[Path]) -> Raw:
    """With all other files of the folder as left out."""
    listing = Folder(folder).listing()
    others = sorted((path for path in listing.files if folder / path not in used), key=natural)
    left_out = {**dict.fromkeys(others, f"beside {used[0].name}"), **listing.left_out}
    return replace(found, left_out={**found.left_out, **layouts.printable(left_out)})


def _tables(folder: Path) -> list[Path]:
    """Those in the folder, in its folders, and in folders of these that are named as splits."""
    splits = (below for below in folder.glob("*/*/") if split_of_file(below.name))
    found = (file for place in (folder, *folder.glob("*/"), *splits) for file in place.glob(f"*{TABLE}"))
    return [file for file in found if not any(map(hidden, file.relative_to(folder).parts))]


def _read_tables(path: Path, tables: Sequence[Path], told: Told) -> Raw:
    from src.sources import parquet  # pyarrow takes its time

    told.check(path, "Parquet")
    return parquet.read(path if path.is_dir() else path.parent, tables, told.label_column)


def _whole_files(folder: Path) -> list[Path]:
    """Files that hold a data set or a split of one; archives count only where no folder stands beside them."""
    visible = [path for path in sorted(folder.iterdir()) if not hidden(path.name)]
    packed = [path for path in visible if archives.is_archive(path)]
    unpacked = any(path.is_dir() for path in visible)
    return [path for path in visible if path.suffix.casefold() == ".npz"] or ([] if unpacked else packed)


def _read_splits(folder: Path, files: Sequence[Path], told: Told) -> Raw:
    """Files whose names say which split is in them."""
    splits = [split_of_file(path.name) for path in files]
    if "train" in splits and None not in splits:
        if not archives.is_archive(files[0]):
            told.check(folder)
            return arrays.read(files)
        if len(set(splits)) == len(splits):
            told.check(folder, "image folders")
            trees = {str(split): archives.tree(path) for split, path in zip(splits, files, strict=True)}
            return layouts.read(Joined(folder, trees), told.splits)
    raise DataError(f"{folder} holds {', '.join(path.name for path in files)}: name the one to read as the source")
