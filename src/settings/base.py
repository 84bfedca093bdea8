"""What all sections of params.yaml share: frozen, strict classes, and the kinds of numbers and lists their fields take."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

Positive = Annotated[int, Field(ge=1)]
PositiveReal = Annotated[float, Field(gt=0)]
NonNegativeReal = Annotated[float, Field(ge=0)]
Momentum = Annotated[float, Field(ge=0, lt=1)]
AugmentationKind = Literal["color", "crop", "cutout", "flip", "scale", "rotate"]


def _once(kinds: tuple[str, ...]) -> tuple[str, ...]:
    if len(set(kinds)) < len(kinds):
        raise ValueError(f"a kind stands twice in {', '.join(kinds)}: name each once, as all have the same chance")
    return kinds


# strict=False only lets YAML's list become a tuple; the items stay checked
Augmentation = Annotated[tuple[AugmentationKind, ...], Field(strict=False), AfterValidator(_once)]


class Settings(BaseModel):
    """Frozen, strict, without unknown keys, without infinities."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)
