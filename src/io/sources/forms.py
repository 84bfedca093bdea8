"""What a path holds: a published data set, IDX files, .npz, Parquet, an archive, or an image folder; the first that fits."""

from __future__ import annotations

from pathlib import Path

from src.ground.errors import DataError
from src.ground.settings import SplitFolders
from src.io.sources import archives, arrays, idx, layouts, parquet, published
from src.io.sources.raw import Raw
from src.io.sources.trees import Folder, hidden

ACCEPTED = "an image folder, a .zip or .tar of one, .npz, Parquet or IDX files"


def read(path: Path, told: SplitFolders | None = None) -> Raw:
    """`told` is what the settings say of splits. Raises DataError where the path holds no data set, or a damaged one."""
    if not path.exists():
        raise DataError(f"the source {path} does not exist: give the path of {ACCEPTED}")
    if path.is_dir():
        return _read_folder(path) if told is None else _read_told(path, told)
    if archives.is_archive(path):
        return layouts.read(archives.tree(path), told)
    if told is not None:
        raise DataError(f"the setting splits is for image folders, not for {path}: take it out")
    suffix = path.suffix.casefold()
    if suffix == ".npz":
        return arrays.read(path)
    if suffix == ".parquet":
        return parquet.read([path])
    raise DataError(f"the source {path} is of no known form: give the path of {ACCEPTED}")


def _read_folder(folder: Path) -> Raw:
    above = folder.parent if folder.name in published.FOLDERS else folder
    for reader in published.READERS.values():
        found = reader(above)
        if found is not None:
            return found
    if idx.is_here(folder):
        return idx.read(folder)
    tables = parquet.files(folder)
    if tables:
        return parquet.read(tables)
    files = _single_files(folder)
    if len(files) > 1:
        raise DataError(f"{folder} holds {', '.join(path.name for path in files)}: name the one to read as the source")
    return read(files[0]) if files else layouts.read(Folder(folder))


def _read_told(folder: Path, told: SplitFolders) -> Raw:
    """The image folder, or the one archive in it: no other form has folders for splits."""
    files = _single_files(folder)
    return read(files[0], told) if len(files) == 1 else layouts.read(Folder(folder), told)


def _single_files(folder: Path) -> list[Path]:
    """Files that hold a whole data set each; archives count only where no folder stands beside them."""
    visible = [path for path in sorted(folder.iterdir()) if not hidden(path.name)]
    packed = [path for path in visible if archives.is_archive(path)]
    unpacked = any(path.is_dir() for path in visible)
    return [path for path in visible if path.suffix.casefold() == ".npz"] or ([] if unpacked else packed)
