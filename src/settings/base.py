"""What all sections of params.yaml share: names, strict classes that are frozen, kinds of numbers and lists of their fields."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

MISSING = "is missing: it has no default"
Problems = list[tuple[str, str]]  # place and what is wrong there

# names become folders, stages of DVC, keys of `dvc exp run -S` and of MLflow: this is what all of these take
LONGEST_NAME = 64  # stages put names together, and a file's name has room for 255 characters, a key of MLflow for 250
# to `dvc exp run -S`, though the file may have them in quotes; DVC puts None for the null of a run without experts
VALUES = ("true", "false", "null", "none", "nan", "inf")
DEVICES = ("con", "prn", "aux", "nul", *(f"{port}{number}" for port in ("com", "lpt") for number in range(10)))  # of Windows
NAME = re.compile(rf"(?!(?i:{'|'.join((*VALUES, *DEVICES))})$)[A-Za-z][A-Za-z0-9_-]{{0,{LONGEST_NAME - 1}}}")
NAME_RULE = (
    f"take letters, digits, '_' and '-', a letter first, {LONGEST_NAME} at most, and no word that stands for something else "
    f"({', '.join((*VALUES, *DEVICES[:4]))}, com0 to com9, lpt0 to lpt9)"
)

MOST = 1_000_000  # of counts: more are a slip of the pen, whose lists fill the memory before anything can say so

Positive = Annotated[int, Field(ge=1, le=MOST)]
NonNegative = Annotated[int, Field(ge=0, le=MOST)]
Several = Annotated[int, Field(ge=2, le=MOST)]
Mebibytes = Annotated[int, Field(ge=0)]
PositiveReal = Annotated[float, Field(gt=0)]
NonNegativeReal = Annotated[float, Field(ge=0)]
Momentum = Annotated[float, Field(ge=0, lt=1)]
Told = Annotated[str, Field(min_length=1)]  # an empty path would be the folder that the command runs in
AugmentationKind = Literal["color", "crop", "cutout", "flip", "scale", "rotate"]


Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


def _once(kinds: tuple[str, ...]) -> tuple[str, ...]:
    if len(set(kinds)) < len(kinds):
        raise ValueError(f"a kind stands twice in {', '.join(kinds)}: name each once, as all have the same chance")
    return kinds


# strict=False only lets YAML's list become a tuple; the items stay checked
Augmentation = Annotated[tuple[AugmentationKind, ...], Field(strict=False), AfterValidator(_once)]


class Settings(BaseModel):
    """Frozen, strict, without unknown keys, without infinities."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)


def describe(error: ValidationError, model: type[BaseModel], given: Any, path: str = "") -> Problems:
    """One problem for each dotted path into what was `given`, in words; the branches of a union share one."""
    found: dict[str, str] = {}
    for item in error.errors():
        places = _places(item, given)
        where, text = ".".join(str(part) for part in (path, *places) if part != ""), _text(item, model, places)
        found[where] = f"{found[where]}, or: {text}" if where in found and text != found[where] else text
    return list(found.items())


def spelled_alike(names: Iterable[str]) -> dict[str, str]:
    """What is wrong with those names that an earlier one differs from in capitals alone."""
    first: dict[str, str] = {}
    return {
        name: f"differs from '{other}' in capitals alone, which some file systems take for the same folder: rename one"
        for name in names
        if (other := first.setdefault(name.lower(), name)) != name
    }


def _places(item: Any, given: Any) -> list[str | int]:
    """Keys and indices that lead to the mistake; pydantic adds the branches of unions, which are no places in the file."""
    found: list[str | int] = []
    for number, part in enumerate(item["loc"], start=1):
        if (isinstance(given, Mapping) and part in given) or (isinstance(given, Sequence) and isinstance(part, int)):
            given = given[part] if isinstance(given, Mapping) or part < len(given) else None
            found.append(part)
        elif number == len(item["loc"]) and item["type"] == "missing":
            found.append(part)
    return found


def _keys(item: Any, model: type[BaseModel], places: Sequence[str | int]) -> list[str]:
    """Those that the mapping with an unknown one may have; none where it can't be told what it is."""
    owners = [model]
    for part in places[:-1]:
        fields = [owner.model_fields[part].annotation for owner in owners if part in owner.model_fields]
        owners = [inner for one in fields for inner in _models(one)] or owners
    branches = [owner for owner in owners if owner.__name__ in item["loc"]]
    owners = branches or owners
    return list(owners[0].model_fields) if len(owners) == 1 else []


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for one in get_args(annotation):
        yield from _models(one)


def _text(item: Any, model: type[BaseModel], places: Sequence[str | int]) -> str:
    if item["type"] == "extra_forbidden":
        known = _keys(item, model, places)
        return f"unknown key: choose from {', '.join(known)}" if known else "unknown key: take it out"
    if item["type"] == "missing":
        return MISSING
    if item["type"] == "value_error":  # one of our own rules, in our own words
        return str(item["ctx"]["error"])
    return f"{item['msg'][0].lower()}{item['msg'][1:]}; got {item['input']!r}"
