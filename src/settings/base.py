"""What all sections of params.yaml share: frozen, strict classes, and the kinds of numbers and lists their fields take."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

MISSING = "is missing: it has no default"
Problems = list[tuple[str, str]]  # place and what is wrong there

Positive = Annotated[int, Field(ge=1)]
NonNegative = Annotated[int, Field(ge=0)]
PositiveReal = Annotated[float, Field(gt=0)]
NonNegativeReal = Annotated[float, Field(ge=0)]
Momentum = Annotated[float, Field(ge=0, lt=1)]
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


def describe(error: ValidationError, model: type[BaseModel], path: str = "") -> Problems:
    """One problem for each dotted path, in words; the branches of a union share one."""
    found: dict[str, str] = {}
    for item in error.errors():
        # beyond the field, pydantic adds the branch of a union, which is no place in the file, to indices and keys
        places = [part for i, part in enumerate(item["loc"]) if i == 0 or isinstance(part, int) or part == "method"]
        where = ".".join(str(part) for part in (path, *places) if part != "")
        found[where] = f"{found[where]}, or: {_text(item, model)}" if where in found else _text(item, model)
    return list(found.items())


def _text(item: Any, model: type[BaseModel]) -> str:
    if item["type"] == "extra_forbidden":
        return f"unknown key: choose from {', '.join(model.model_fields)}"
    if item["type"] == "missing":
        return MISSING
    if item["type"] == "value_error":  # one of our own rules, in our own words
        return str(item["ctx"]["error"])
    return f"{item['msg'][0].lower()}{item['msg'][1:]}; got {item['input']!r}"
