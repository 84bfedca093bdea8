"""The section `runs`: named runs, which put the other sections together."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from src.settings.base import Positive, Settings


def _different(names: tuple[str, ...]) -> tuple[str, ...]:
    if len(set(names)) < len(names):
        raise ValueError(f"a name stands twice in {', '.join(names)}: name each once")
    return names


Names = Annotated[tuple[str, ...], Field(strict=False), AfterValidator(_different)]


class RunDistill(BaseModel):
    """A method's name and the run's own values for fields of Distillation, which go before the method's."""

    model_config = ConfigDict(extra="allow", strict=True, frozen=True, use_attribute_docstrings=True)

    method: str
    """Method, a key of `distill`."""


class Run(Settings):
    """One named run: a synthetic set, from its initialisation to its test accuracy."""

    dataset: str
    """Data set, a key of `prepare`."""
    network: str
    """Network that is matched and evaluated, a key of `networks`."""
    experts: str | None
    """Experts whose trajectories are matched, or who choose images, a key of `experts`; null for a baseline that asks none."""
    ipc: Positive | Literal["all"]
    """Images per class; all takes the whole training split (the upper reference, not distilled)."""
    distill: RunDistill
    """The method and this run's own values."""
    evaluate: str
    """Evaluation protocol, a key of `evaluate`."""
    cross: Names = ()
    """Further networks that fresh students are scored with, keys of `networks`. They learn with the synthetic set's own
    syn_lr (MTT's way), though it was learned for the run's network."""

    @model_validator(mode="after")
    def _crosses_to_other_networks(self) -> Run:
        if self.network in self.cross:
            raise ValueError(f"cross names the run's own network '{self.network}', which is always scored: leave it out")
        return self
