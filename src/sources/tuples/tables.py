"""Tuples from a table: which column each modality is, which rows share an item, and which split each is of."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from src.ground.counting import counted
from src.ground.errors import DataError
from src.settings.datasets import Dataset, Modality, held
from src.sources import sentences
from src.sources.tuples import layouts, pictures
from src.sources.tuples.layouts import Row
from src.sources.tuples.raw import RawItems, RawTuples, Rows

USUAL: Mapping[str, tuple[str, ...]] = {
    "image": ("image", "img", "file_name", "filename", "image_name", "image_path", "path"),
    "text": ("caption", "captions", "text", "sentence", "sentences", "comment"),
    "audio": ("audio", "sound", "wav", "file_name", "filename", "path"),
    "vector": ("embedding", "vector", "features"),
}
SPLITS = ("train", "val", "test")
LANGUAGES = ("language", "lang", "locale")
PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp")
NAMED = 3  # rows or files that a sentence names


def read(settings: Dataset, state: int) -> RawTuples:
    """The table that settings name, split by draws of `state` where it is not split. Raises DataError."""
    assert settings.modalities is not None
    path = Path(settings.path or settings.source).expanduser()
    rows = layouts.rows(path)
    chosen = chosen_columns(rows, settings.modalities)
    folder = path if path.is_dir() else path.parent
    files = Files(folder)
    tuples, empty = _tuples(rows, settings.modalities, chosen, files)
    if empty and not settings.skip_broken:
        text = f"{counted(len(empty), 'row')} without a value, {sentences.first(empty, NAMED)}"
        raise DataError(f"{text}: fill them in, or leave them out with skip_broken: true")
    missing = files.missing(tuples, settings.modalities)
    if missing:
        text = f"{counted(len(missing), 'file')} that the table names can't be found below {folder}"
        raise DataError(f"{text}, {sentences.first(missing, NAMED)}: put them there, or take their rows out")
    tuples, broken = _readable(tuples, settings.modalities, files) if settings.skip_broken else (tuples, {})
    parts = _parts(tuples, settings, state)
    items, places = _items(tuples, settings.modalities, files)
    splits = {split: places[own] for split, own in parts.items()}
    told = [[one.row.split, *own] for one, own in zip(tuples, places.tolist(), strict=True)]
    notes = sentences.of_source(_notes(rows, chosen, empty, files, settings.modalities), {}, broken)
    return RawTuples(items, splits, told, broken=broken, notes=tuple(notes))


def chosen_columns(rows: Sequence[Row], modalities: Mapping[str, Modality]) -> dict[str, str]:
    """The column of each modality: the one that is named, one called as the modality, or one with a usual name of its kind."""
    have, found = layouts.columns(rows), dict[str, str]()
    for name, modality in modalities.items():
        likely = (modality.column,) if modality.column else (name, *USUAL[held(modality)])
        column = next((one for one in likely if one in have and one not in found.values()), None)
        if column is None:
            wanted = f"no column {modality.column}" if modality.column else f"no column that is known for {held(modality)}"
            raise DataError(f"the table has {wanted}, but {', '.join(have)}: name one of these as the modality's column")
        found[name] = column
    return found


@dataclass(frozen=True)
class Tuple:
    """One tuple of the table."""

    row: Row
    values: tuple[Any, ...]  # a modality each
    keys: tuple[Any, ...]  # of the same items the same


def _tuples(
    rows: Sequence[Row], modalities: Mapping[str, Modality], chosen: Mapping[str, str], files: Files
) -> tuple[list[Tuple], list[str]]:
    """A tuple for each text of a row that has several, and the rows, and texts, that lack a value."""
    found, empty = [], []
    kinds = [held(modality) for modality in modalities.values()]
    for row in rows:
        each: list[tuple[Any, ...]] = [()]
        for name in modalities:
            value = row.values.get(chosen[name])
            several = value if isinstance(value, list) and held(modalities[name]) == "text" else [value]
            filled = [one for one in several if not _is_empty(one)]
            empty += [f"{row.name} ({chosen[name]})"] * (len(several) - len(filled) or not filled)
            each = [(*before, one) for before in each for one in filled]
        found += [Tuple(row, own, tuple(files.key(*one, row) for one in zip(kinds, own, strict=True))) for own in each]
    _check_order(found, modalities)
    if not found:
        raise DataError(f"the table has no whole row: fill in its columns {', '.join(chosen.values())}")
    return found, empty


def _check_order(tuples: Sequence[Tuple], modalities: Mapping[str, Modality]) -> None:
    """Raises DataError where the first modality is text and an item of another has several: splits are cut by the first."""
    first, *others = modalities
    if held(modalities[first]) != "text":
        return
    for place, name in enumerate(others, start=1):
        texts: dict[Any, Any] = {}
        for one in tuples if held(modalities[name]) != "text" else ():
            if texts.setdefault(one.keys[place], one.values[0]) != one.values[0]:
                raise DataError(
                    f"{one.row.name}: its {name} has several texts, which splits by {first} would part: name {name} first"
                )


def _is_empty(value: Any) -> bool:
    return value is None or (isinstance(value, str) and not value.strip())


def _readable(
    tuples: Sequence[Tuple], modalities: Mapping[str, Modality], files: Files
) -> tuple[list[Tuple], Mapping[str, str]]:
    """The tuples whose pictures can be read, and why others can't, by name. Raises DataError where a split keeps none."""
    pictures_at = [place for place, modality in enumerate(modalities.values()) if held(modality) == "image"]
    flaws: dict[Any, tuple[str, str]] = {}  # by key: name and reason
    for one in tuples:
        for place in pictures_at:
            if one.keys[place] not in flaws:
                name = files.name("image", one.values[place], one.row)
                flaws[one.keys[place]] = name, pictures.flaw(files.content("image", one.values[place], one.row), name)
    kept = [one for one in tuples if not any(flaws[one.keys[place]][1] for place in pictures_at)]
    broken = {name: reason for name, reason in flaws.values() if reason}
    before, after = ({one.row.split or "train" for one in own} for own in (tuples, kept))
    if before != after:
        text = f"no picture of the {min(before - after)} split can be read, {sentences.broken(broken)}"
        raise DataError(f"{text}: repair them, or take their rows out of the table")
    return kept, broken


def _parts(tuples: Sequence[Tuple], settings: Dataset, state: int) -> Mapping[str, list[int]]:
    """Places by split: those that the table names, and the rest cut so that all tuples of an item of the first modality stay
    together. Raises DataError where there are too few.
    """
    own = {split: [place for place, one in enumerate(tuples) if one.row.split == split] for split in SPLITS}
    own["train"] += [place for place, one in enumerate(tuples) if one.row.split is None]
    keys = [one.keys[0] for one in tuples]
    if not own["train"]:
        raise DataError("no row is of the training split: write `train` into the column `split` of some, or leave them without")
    whole = len({keys[place] for place in own["train"]})  # that both fractions are of
    for split, fraction in (("test", settings.test_fraction), ("val", settings.val_fraction)):
        if own[split]:
            continue
        units = list(dict.fromkeys(keys[place] for place in own["train"]))
        count = max(1, round(fraction * whole))
        if count >= len(units):
            raise DataError(f"a {split} split can't be cut off {counted(len(units), 'item')}: add some")
        drawn = np.random.default_rng([state, len(split)]).permutation(len(units))[:count]
        cut = {units[int(place)] for place in drawn}
        own[split] = [place for place in own["train"] if keys[place] in cut]
        own["train"] = [place for place in own["train"] if keys[place] not in cut]
    if settings.train_images is not None:
        units = list(dict.fromkeys(keys[place] for place in own["train"]))
        drawn = np.random.default_rng([state, 0]).permutation(len(units))[: settings.train_images]
        kept = {units[int(place)] for place in drawn}
        own["train"] = [place for place in own["train"] if keys[place] in kept]
    return own


def _items(tuples: Sequence[Tuple], modalities: Mapping[str, Modality], files: Files) -> tuple[Mapping[str, RawItems], Rows]:
    """Each item once, and the tuples as rows of them.

    Items are told apart within the group of the first modality's item, as the same words may be said of two pictures.
    """
    group_of: dict[Any, int] = {}
    places: list[dict[Any, int]] = [{} for _ in modalities]
    values: list[list[Any]] = [[] for _ in modalities]
    groups: list[list[int]] = [[] for _ in modalities]
    names: list[list[str]] = [[] for _ in modalities]
    rows = np.zeros((len(tuples), len(modalities)), dtype=np.int64)
    for number, one in enumerate(tuples):
        group = group_of.setdefault(one.keys[0], len(group_of))
        for place, (modality, value) in enumerate(zip(modalities.values(), one.values, strict=True)):
            key = (group, one.keys[place])
            if key not in places[place]:
                places[place][key] = len(values[place])
                values[place].append(files.content(held(modality), value, one.row))
                groups[place].append(group)
                names[place].append(files.name(held(modality), value, one.row))
            rows[number, place] = places[place][key]
    items = {name: RawItems(*own) for name, own in zip(modalities, zip(values, groups, names, strict=True), strict=True)}
    return items, rows


@dataclass
class Files:
    """The files that a table names."""

    folder: Path  # of the source
    _found: dict[tuple[Path, str], Path | None] = field(default_factory=dict)
    _by_name: dict[Path, dict[str, list[Path]]] = field(default_factory=dict)

    def find(self, told: str, row: Row) -> Path | None:
        """By its path below the row's folder, or by its name where one file alone has it there."""
        key, own = (row.folder, told), row.folder / told
        if key not in self._found:
            with contextlib.suppress(OSError):  # of a name too long for a file, as a text's is
                self._found[key] = own if own.is_file() else self._named(own.name, row.folder)
        return self._found.setdefault(key, None)

    def _named(self, name: str, folder: Path) -> Path | None:
        if folder not in self._by_name:
            by_name = self._by_name.setdefault(folder, {})
            for path in folder.rglob("*"):
                by_name.setdefault(path.name, []).append(path)
        named = self._by_name[folder].get(name, [])
        return named[0] if len(named) == 1 and named[0].is_file() else None

    def key(self, kind: str, value: Any, row: Row) -> Any:
        """What makes two values the same item: the same text, file or bytes; else each row has its own."""
        value = _held(value)
        if isinstance(value, bytes):
            return hashlib.sha256(value).digest()
        if isinstance(value, str):
            return value if kind == "text" else self.find(value, row) or value
        return str(row.table), row.number

    def name(self, kind: str, value: Any, row: Row) -> str:
        """What sentences call an item: a text or a path below the source's folder."""
        if kind == "text" or not isinstance(value, str):
            return value if isinstance(value, str) else row.name
        return str(row.folder.relative_to(self.folder) / value)

    def missing(self, tuples: Sequence[Tuple], modalities: Mapping[str, Modality]) -> list[str]:
        """Paths that tuples name and that are not there."""
        kinds = [held(modality) for modality in modalities.values()]
        told = {
            (path, one.row.folder): self.name(kind, path, one.row)
            for one in tuples
            for kind, value in zip(kinds, one.values, strict=True)
            if kind != "text" and isinstance(path := _held(value), str) and self.find(path, one.row) is None
        }
        return list(told.values())

    def content(self, kind: str, value: Any, row: Row) -> Any:
        """What an item is made of. Raises DataError."""
        if kind == "text":
            return str(value)
        value = _held(value)
        if isinstance(value, str):
            path = self.find(value, row)
            assert path is not None, "what is missing was told before"
            return _vector(path) if kind == "vector" else path.read_bytes()
        if kind == "vector":
            return _numbers(value, row.name)
        if not isinstance(value, bytes):
            raise DataError(f"{row.name} holds neither bytes nor a path for its {kind}: write one of these")
        return value

    def pictures(self) -> list[Path]:
        return [path for path in sorted(self.folder.rglob("*")) if path.suffix.lower() in PICTURES]


def _held(value: Any) -> Any:
    """Bytes or a path: those of the Hugging Face hub are in a mapping."""
    return value.get("bytes") or value.get("path") if isinstance(value, Mapping) else value


def _numbers(value: Any, who: str) -> Any:
    """A vector of finite numbers. Raises DataError, with `who` it is of."""
    try:
        found = np.asarray(value, dtype=np.float32).reshape(-1)
    except (TypeError, ValueError):
        raise DataError(f"{who} holds no vector of numbers: write numbers alone") from None
    if not np.isfinite(found).all():
        raise DataError(f"{who} holds a vector with numbers that are not finite: leave it out, or mend it")
    return found


def _vector(path: Path) -> Any:
    try:
        return _numbers(np.load(path, allow_pickle=False), str(path))
    except DataError:
        raise
    except (ValueError, EOFError, OSError) as error:
        raise DataError(f"{path} can't be read as an array of NumPy ({error}): write it again with numpy.save") from None


def _notes(
    rows: Sequence[Row], chosen: Mapping[str, str], empty: Sequence[str], files: Files, modalities: Mapping[str, Modality]
) -> Iterator[str]:
    """What was decided, and what is left out."""
    yield f"columns: {', '.join(f'{name} is {column}' for name, column in chosen.items())}"
    other = [name for name in layouts.columns(rows) if name not in chosen.values()]
    languages = [name for name in other if name.casefold() in LANGUAGES]
    if languages:
        yield f"the column {languages[0]} is not read: captions of all languages are taken alike"
    if set(other) - set(languages):
        yield f"columns that are not read: {sentences.first([name for name in other if name not in languages], NAMED)}"
    if empty:
        yield f"left out: {counted(len(empty), 'row')} without a value, {sentences.first(empty, NAMED)}"
    kind, column = next(((held(m), chosen[name]) for name, m in modalities.items() if held(m) == "image"), ("", ""))
    if kind:
        listed = {
            found for row in rows if isinstance(row.values.get(column), str) and (found := files.find(row.values[column], row))
        }
        alone = [path.name for path in files.pictures() if path not in listed] if listed else []
        if alone:
            yield f"left out: {counted(len(alone), 'picture')} without a row in the table, {sentences.first(alone, NAMED)}"
