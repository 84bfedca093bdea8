"""What is planned for a cluster: presets of known data sets, or a run, with other values of its settings."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, replace
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from src.editing import presets
from src.ground.errors import UserError
from src.maths.networks import ImageShape
from src.settings import params, resolved
from src.settings.resolved import Run
from src.stages import plan_memory
from src.stages.plan_cluster import Assumptions
from src.stages.plan_memory import Facts
from src.store.store import Store

Model = TypeVar("Model", bound=BaseModel)
# beyond those that `prepare` knows: images of 64x64, as published cells of it have them
BEYOND = {"imagenet-1k": Facts(ImageShape(3, 64, 1000), 1_281_167, 50_000, 50_000)}
AS = {"imagenet-1k": "tiny-imagenet"}  # whose cells' settings are taken


def cells_of(dataset: str, recipe: str, ipcs: Iterable[int], changes: Mapping[str, Any]) -> dict[str, tuple[Run, Facts]]:
    """The presets of a data set by name, with changes of their settings, such as experts.count. Raises UserError."""
    found = {}
    for ipc in ipcs:
        name = f"{AS.get(dataset, dataset)}-ipc{ipc}-{recipe}"
        if name not in presets.load():
            raise UserError(f"there is no preset {name}, whose settings a plan goes by: see `python -m src.cli preset list`")
        run = resolved.run(params.parse({"seed": 0, "report": {"title": "plan"}, **presets.load()[name].sections}), name)
        run = _changed(run, changes)
        facts = BEYOND[dataset] if dataset in BEYOND else plan_memory.facts_known(run.dataset.settings)
        found[f"{dataset}-ipc{ipc}-{recipe}"] = run, facts
    return found


def of_run(store: Store, run: Run, changes: Mapping[str, Any]) -> dict[str, tuple[Run, Facts]]:
    resolved.check_images([run], "plan", "name a run of images")
    return {run.name: (_changed(run, changes), plan_memory.facts_of(store, run.dataset))}


def _changed(run: Run, changes: Mapping[str, Any]) -> Run:
    """The run with other values of its settings."""
    for name, value in changes.items():
        section, _, field = name.partition(".")
        if section == "experts" and run.buffer is not None and field in type(run.buffer.settings).model_fields:
            run = replace(run, buffer=replace(run.buffer, settings=_with(run.buffer.settings, name, field, value)))
        elif section == "distill" and field in type(run.distillation).model_fields:
            run = replace(run, distillation=_with(run.distillation, name, field, value))
        elif section == "evaluate" and field in type(run.evaluation).model_fields:
            run = replace(run, evaluation=_with(run.evaluation, name, field, value))
        elif section == "network" and field in type(run.spec).model_fields:
            run = replace(run, spec=_with(run.spec, name, field, value))
        else:
            fields = ", ".join(asdict(Assumptions()))
            raise UserError(
                f"--set {name}: no such value; set an assumption ({fields}), or a field of experts, distill, evaluate or "
                "network, as experts.count"
            )
    return run


def _with(settings: Model, name: str, field: str, value: float) -> Model:
    """The settings with another value. Raises UserError where they have no such."""
    try:
        return type(settings).model_validate({**settings.model_dump(), field: value})
    except ValidationError as error:
        raise UserError(f"--set {name}={value}: {error.errors()[0]['msg']}") from None


def split(given: Iterable[str]) -> tuple[Assumptions, dict[str, Any]]:
    """NAME=VALUE pairs as assumptions, and the others as changes of settings. Raises UserError."""
    own, changes, known = dict[str, Any](), dict[str, Any](), asdict(Assumptions())
    for pair in given:
        name, _, text = pair.partition("=")
        try:
            value: float = float(text)
        except ValueError:
            raise UserError(f"--set {pair}: give a name and a number, as utilisation=0.4") from None
        whole = isinstance(known.get(name), int)
        if not math.isfinite(value) or (name in known and not value > 0) or (whole and not value.is_integer()):
            raise UserError(f"--set {pair}: give a {'whole ' if whole else ''}number above 0")
        if name in known:
            own[name] = int(value) if whole else value
        else:
            changes[name] = int(value) if value.is_integer() else value
    return Assumptions(**own), changes
