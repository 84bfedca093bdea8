"""What a study searches: parameters of the method that a run has, each with the values it may take.

The ranges hold for images from 8x8 to 64x64 and tuples of such; the section `tune` of params.yaml changes them by data set.
Every range is widened to the run's present value, so that a study can start from it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from src.ground.errors import UserError
from src.settings.distillation import Distillation
from src.settings.experts import Experts
from src.settings.resolved import Run
from src.settings.studies import Range, Ranges, Tune
from src.studies.variants import Changes

Side = Literal["student", "expert", "both"]
Space = Mapping[str, BaseDistribution]  # by 'distill.lr_img', 'experts.lr'

SIDES: Mapping[Side, tuple[str, ...]] = {"student": ("distill",), "expert": ("experts",), "both": ("distill", "experts")}
DIGITS = 3  # of a real number that is tried: what params.yaml shows is exactly what was tried


def _choose(*values: bool | float | str) -> Range:
    return Range(choices=values)


DISTILL: Mapping[str, Range] = {
    "lr_img": Range(low=0.1, high=1e4, log=True),
    "lr_lr": Range(low=1e-7, high=1e-3, log=True),
    "lr_init": Range(low=1e-3, high=0.1, log=True),
    "syn_steps": Range(low=10, high=40),
    "expert_epochs": Range(low=1, high=4),
    "max_start_epoch": Range(low=1, high=30),
    "inner_momentum": _choose(0.0, 0.5, 0.9),
    "initialisation": _choose("representative", "random"),
    "balanced_loss": _choose(True, False),
    "intermediate_loss": _choose("off", "sum", "ramp"),
    "weight_perturbation": Range(low=0.0, high=2.0),
}
# of the above, what is about experts that students are matched to
MATCHING = {"expert_epochs", "max_start_epoch", "balanced_loss", "intermediate_loss", "weight_perturbation"}
LABELS: Mapping[str, Range] = {"lr_label": Range(low=0.1, high=20, log=True)}
EMA: Mapping[str, Range] = {"ema": _choose(0.9, 0.99, 0.999, 0.9995)}
ADAM: Mapping[str, Range] = {"lr_img": Range(low=1e-4, high=1.0, log=True), "lr_lr": Range(low=1e-6, high=1e-2, log=True)}
ADAM_LABELS: Mapping[str, Range] = {"lr_label": Range(low=1e-3, high=1.0, log=True)}
EXPERTS: Mapping[str, Range] = {
    "lr": Range(low=1e-3, high=0.1, log=True),
    "momentum": _choose(0.0, 0.5, 0.9),
    "weight_decay": _choose(0.0, 1e-4, 5e-4, 1e-3),
    "lr_drop_factor": Range(low=0.1, high=1.0),
    "clipping_loss": _choose(True, False),
    "clipping_start": Range(low=0.2, high=0.9),
    "clipping_epochs": Range(low=1, high=20),
    "gradient_penalty": Range(low=0.0, high=5.0),
    "gradient_penalty_axes": _choose("channels", "image"),
}
SHARPNESS: Mapping[str, Range] = {"sharpness": Range(low=1e-3, high=0.1, log=True)}
# of tuples, which have no classes
TUPLES: Mapping[str, Range] = {"initialisation": _choose("random", "herding", "k_center")}
OF_IMAGES = {"gradient_penalty", "gradient_penalty_axes"}


def build(base: Run, tune: Tune, side: Side) -> Space:
    """The distributions of a side's parameters; raises UserError where a range does not fit its parameter."""
    ranges = _ranges(base, tune, side)
    space = {name: _distribution(name, ranges[name], value) for name, value in start(base, tune, side).items()}
    starts = space.get("distill.max_start_epoch")
    if isinstance(starts, IntDistribution):
        high = min(starts.high, base.experts.settings.last_epoch)
        low = min(max(starts.low, _first_bound(base.distillation)), high)
        space["distill.max_start_epoch"] = IntDistribution(low, high, log=starts.log)
    return space


def _first_bound(distil: Distillation) -> int:
    """The lowest max_start_epoch that leaves a window of start epochs."""
    growth = distil.start_growth
    return distil.min_start_epoch + 1 if growth is None else growth.max_start_epoch


def start(base: Run, tune: Tune, side: Side) -> dict[str, Any]:
    """The run's present values of what a study searches."""
    present: dict[str, Distillation | Experts] = {"distill": base.distillation}
    if base.buffer is not None:
        present["experts"] = base.buffer.settings
    return {
        name: getattr(present[section], field)
        for name in _ranges(base, tune, side)
        for section, _, field in [name.partition(".")]
    }


def _ranges(base: Run, tune: Tune, side: Side) -> dict[str, Range]:
    """By dotted name: those of this module, those of the data set in their place."""
    own = tune.ranges.get(base.dataset.name, Ranges())
    experts = {**_of_experts(base), **own.experts}
    ranges = {"distill": {**_of_method(base), **own.distill}, "experts": experts}
    if base.buffer is None and side != "student":
        raise UserError(f"tune: {base.name} has no experts: leave --side out, which searches the student's parameters")
    return {f"{section}.{name}": values for section in SIDES[side] for name, values in ranges[section].items()}


def _of_experts(base: Run) -> Mapping[str, Range]:
    """The experts' parameters that have a say."""
    sharp = SHARPNESS if base.buffer is not None and base.buffer.settings.sharpness else {}
    out = OF_IMAGES if base.dataset.tuples else set()
    return {name: values for name, values in {**EXPERTS, **sharp}.items() if name not in out}


def _of_method(base: Run) -> Mapping[str, Range]:
    """The student's parameters that have a say in a run's method."""
    distil = base.distillation
    adam = distil.outer_optimiser == "adam"
    more = {
        **(TUPLES if base.dataset.tuples else {}),
        **((ADAM_LABELS if adam else LABELS) if distil.labels == "learned" else {}),
        **(EMA if distil.ema is not None else {}),
        **(ADAM if adam else {}),
    }
    out = {
        *(MATCHING if not distil.matches else ()),
        *(("intermediate_loss",) if distil.target == "nearest" else ()),
        *(("inner_momentum",) if distil.inner_optimiser == "adam" else ()),
        *(("initialisation",) if distil.initialisation in ("classified", "given", "run") or not distil.matches else ()),
        *(("lr_init",) if distil.lr_init is None else ()),
        *(("lr_img",) if distil.lr_modalities is not None else ()),
    }
    return {name: values for name, values in {**DISTILL, **more}.items() if name not in out}


def _distribution(name: str, values: Range, present: Any) -> BaseDistribution:
    """Values and the present one, as Optuna has them; raises UserError where they don't go together."""
    if values.choices and not isinstance(present, tuple):
        return CategoricalDistribution(tuple(dict.fromkeys((*values.choices, present))))
    number = isinstance(present, int | float) and not isinstance(present, bool)
    if values.low is None or values.high is None or not number or (values.log and present <= 0):
        kind = "logarithmic range" if values.log else "range"
        raise UserError(
            f"tune: {name} is {present!r} now, which no {kind} holds: give it choices in tune.ranges, or change the run"
        )
    low, high = min(values.low, present), max(values.high, present)
    if not _is_whole(name):
        return FloatDistribution(low, high, log=values.log)
    if low != int(low) or high != int(high):
        raise UserError(f"tune: {name} takes whole numbers, but its range is {low:g} to {high:g}: give whole ends")
    return IntDistribution(int(low), int(high), log=values.log)


def _is_whole(name: str) -> bool:
    section, _, field = name.partition(".")
    model = Distillation if section == "distill" else Experts
    return "int" in str(model.model_fields[field].annotation)


def tidy(base: Run, space: Space, values: Mapping[str, Any]) -> dict[str, Any]:
    """Drawn values as they are tried: rounded, and with start epochs that the experts reach."""
    found = {name: _rounded(value, space[name]) for name, value in values.items()}
    if "distill.max_start_epoch" in found:
        epochs = found.get("distill.expert_epochs", base.distillation.expert_epochs)
        last = base.experts.settings.last_epoch
        lowest, latest = _first_bound(base.distillation), min(found["distill.max_start_epoch"], last + 1 - epochs)
        given = space["distill.max_start_epoch"]
        if not isinstance(given, CategoricalDistribution):
            found["distill.max_start_epoch"] = max(latest, lowest)
        elif fitting := [one for one in given.choices if isinstance(one, int) and lowest <= one <= latest]:
            found["distill.max_start_epoch"] = max(fitting)  # where none fits, the trial fails and says why
    return found


def _rounded(value: Any, distribution: BaseDistribution) -> Any:
    if not isinstance(distribution, FloatDistribution):
        return value
    return min(max(float(f"{value:.{DIGITS}g}"), distribution.low), distribution.high)


def changes(values: Mapping[str, Any]) -> Changes:
    """A trial's values, by the sections they belong to."""
    parts: dict[str, dict[str, Any]] = {"distill": {}, "experts": {}}
    for name, value in values.items():
        section, _, field = name.partition(".")
        parts[section][field] = value
    return Changes(parts["distill"], parts["experts"])
