"""Which columns of a table hold images and labels: what its metadata say goes before names, and these before what is left."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from src.ground.errors import DataError
from src.sources.labels import Value

IMAGES = ("image", "img")  # one of these goes before others, the first before the second
LABELS = ("label", "labels", "fine_label")
LIKELY = frozenset({*LABELS, "class", "classes", "class_label", "class_name", "label_name", "target", "targets", "category"})
INDEX = re.compile(r"__index_level_\d+__")  # which pandas adds


@dataclass(frozen=True)
class Columns:
    """Where a file's images and labels stand."""

    image: str
    label: str
    texts: bool  # whether the labels are texts, else whole numbers
    names: Mapping[Value, str] | None  # of the numbers


def chosen(path: Path, schema: pa.Schema, label: str | None = None) -> tuple[Columns, tuple[str, ...]]:
    """The columns, and sentences on what was decided; `label` is that of the labels, where it is given.

    Raises DataError, naming the columns, where it is not clear which they are.
    """
    features = _features(schema)
    image = _image(path, schema, features)
    others = [field.name for field in schema if field.name != image and not INDEX.fullmatch(field.name)]
    found, notes = (label, ()) if label is not None else _label(path, schema, others, features)
    if found not in others:
        raise DataError(f"{path} has no column {found} of labels, but {_listed(schema)}: name one of these")
    kind = schema.field(found).type
    if not _can_label(kind):
        rule = "an image of several classes can't be used" if _is_list(kind) else "labels are whole numbers or texts"
        raise DataError(f"{path} has the column {found} of {kind}, but {rule}: give each row one label, or name another column")
    names = features[found]["names"] if _names_classes(features.get(found)) and not _is_text(kind) else None
    return Columns(image, found, _is_text(kind), dict(enumerate(map(str, names))) if names else None), notes


def _image(path: Path, schema: pa.Schema, features: Mapping[str, Any]) -> str:
    able = [field.name for field in schema if _holds_bytes(field.type)]
    told = [name for name in able if isinstance(features.get(name), dict) and features[name].get("_type") == "Image"]
    image = _picked(told or able, IMAGES)
    if image is None:
        needs = f"it needs images as bytes in a column image or img{', but not in several others' if able else ''}"
        raise DataError(f"{path} has the columns {_listed(schema)}: {needs}")
    return image


def _label(path: Path, schema: pa.Schema, others: Sequence[str], features: Mapping[str, Any]) -> tuple[str, tuple[str, ...]]:
    told = [name for name in others if _names_classes(features.get(name))]
    able = [
        name for name in others if _can_label(schema.field(name).type) and not pa.types.is_floating(schema.field(name).type)
    ]
    likely = [name for name in others if name.casefold() in LIKELY]
    choices = told or likely or able
    label = _picked(choices, LABELS)
    if not choices:
        raise DataError(f"{path} has the columns {_listed(schema)}: it needs labels as integers or texts in a column label")
    if label is None:
        text = f"{path} may have its labels in each of the columns {', '.join(choices)}"
        raise DataError(f"{text}: name one with --label-column, or as label_column of the data set")
    rest = [name for name in able if name != label]
    why = f", not of {', '.join(rest)}" if rest else "" if told or likely else ", the only one that can hold them"
    return label, (f"the labels are those of the column {label}{why}",) if why else ()


def _picked(choices: Sequence[str], names: Sequence[str]) -> str | None:
    """The choice with the first of the names, or the only one."""
    first = [choice for name in names for choice in choices if choice.casefold() == name] or choices
    return first[0] if first is not choices or len(choices) == 1 else None


def _features(schema: pa.Schema) -> Mapping[str, Any]:
    """What the datasets library says of each column."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
    except (KeyError, TypeError, ValueError):
        return {}
    return features if isinstance(features, dict) else {}


def _names_classes(feature: object) -> bool:
    return isinstance(feature, dict) and isinstance(feature.get("names"), list)


def _holds_bytes(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return any(field.name == "bytes" and _holds_bytes(field.type) for field in kind)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _can_label(kind: pa.DataType) -> bool:
    types = pa.types
    if types.is_dictionary(kind):
        return _can_label(kind.value_type)
    return bool(_is_text(kind) or types.is_integer(kind) or types.is_boolean(kind) or types.is_floating(kind))


def _is_text(kind: pa.DataType) -> bool:
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def _listed(schema: pa.Schema) -> str:
    return ", ".join(f"{field.name} ({field.type})" for field in schema)
