"""Reads params.yaml into typed settings and reports everything that is wrong with it at once, before anything runs."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from src.ground.errors import ParamsError, UnknownNameError, UserError
from src.ground.settings import Dataset, Distillation, Experts, Network, Protocol, Report, Run, Runtime, Settings

PARAMS_FILE = Path("params.yaml")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")  # names become folder and stage names
NAMED_SECTIONS: Mapping[str, type[Settings]] = {
    "prepare": Dataset,
    "networks": Network,
    "experts": Experts,
    "evaluate": Protocol,
    "runs": Run,
}
SECTIONS = ("seed", "runtime", "prepare", "networks", "experts", "distill", "evaluate", "report", "runs")

Model = TypeVar("Model", bound=BaseModel)
Problems = list[tuple[str, str]]


@dataclass(frozen=True)
class Params:
    """The whole of params.yaml. `distillations` holds each run's method merged with the run's own values."""

    seed: int
    runtime: Runtime
    prepare: Mapping[str, Dataset]
    networks: Mapping[str, Network]
    experts: Mapping[str, Experts]
    evaluate: Mapping[str, Protocol]
    report: Report
    runs: Mapping[str, Run]
    distillations: Mapping[str, Distillation]

    def run(self, name: str) -> Run:
        if name not in self.runs:
            raise UnknownNameError("run", name, "runs", list(self.runs))
        return self.runs[name]

    def dataset(self, name: str) -> Dataset:
        if name not in self.prepare:
            raise UnknownNameError("data set", name, "prepare", list(self.prepare))
        return self.prepare[name]

    def expert_set(self, name: str) -> Experts:
        if name not in self.experts:
            raise UnknownNameError("set of experts", name, "experts", list(self.experts))
        return self.experts[name]


def load(file: Path = PARAMS_FILE) -> Params:
    """Read and validate `file`; raises ParamsError with every problem found, or UserError where it can't be read."""
    try:
        text = file.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"{file} is not in {Path.cwd()}: run the command in the repository's top folder") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file} can't be read as text: {error}") from None
    try:
        raw = YAML(typ="safe").load(text)  # YAML 1.2, the way DVC reads it: 1e-3 is a number
    except YAMLError as error:
        raise ParamsError(str(file), [("(syntax)", " ".join(str(error).split()))]) from None
    return parse(raw, str(file))


def parse(raw: Any, source: str = "params.yaml") -> Params:
    """Validate a parsed document; raises ParamsError with every problem found."""
    problems: Problems = []
    if not isinstance(raw, dict):
        raise ParamsError(source, [("(top level)", f"must be a mapping of the sections {', '.join(SECTIONS)}")])
    for key in raw:
        if key not in SECTIONS:
            problems.append((str(key), f"unknown section: choose from {', '.join(SECTIONS)}"))
    seed = raw.get("seed")
    if not isinstance(seed, int) or isinstance(seed, bool) or seed < 0:
        problems.append(("seed", f"must be a whole number, 0 or more; got {seed!r}"))
    runtime = _validate(Runtime, raw.get("runtime", {}), "runtime", problems)
    report = _validate(Report, raw.get("report", {}), "report", problems)
    named = {section: _named(model, raw, section, problems) for section, model in NAMED_SECTIONS.items()}
    methods = _mapping(raw, "distill", problems)
    distillations = _distillations(methods, named["runs"], problems)
    _check_references(named, problems)
    _check_runs(named, distillations, problems)
    if problems or runtime is None or report is None:
        raise ParamsError(source, problems)
    return Params(seed=seed, runtime=runtime, report=report, distillations=distillations, **named)  # type: ignore[arg-type]


def _mapping(raw: Mapping[str, Any], section: str, problems: Problems) -> dict[str, Any]:
    """The section's valid names with their raw values."""
    value = raw.get(section)
    if not isinstance(value, dict) or not value:
        problems.append((section, "must be a mapping of names to settings, with at least one name"))
        return {}
    good = {}
    for name, settings in value.items():
        if isinstance(name, str) and NAME.fullmatch(name):
            good[name] = settings
        else:
            problems.append(
                (
                    f"{section}.{name}",
                    "names are text of letters, digits, '.', '_', '-', and start with one of the first two",
                )
            )
    return good


def _named(model: type[Model], raw: Mapping[str, Any], section: str, problems: Problems) -> dict[str, Model]:
    found = {
        name: _validate(model, value, f"{section}.{name}", problems) for name, value in _mapping(raw, section, problems).items()
    }
    return {name: value for name, value in found.items() if value is not None}


def _validate(model: type[Model], value: Any, path: str, problems: Problems) -> Model | None:
    try:
        return model.model_validate(value)
    except ValidationError as error:
        problems.extend(_sentences(error, path, model))
        return None


def _sentences(error: ValidationError, path: str, model: type[BaseModel]) -> Problems:
    """One problem for each dotted path, in words; the branches of a union share one."""
    found: dict[str, str] = {}
    for item in error.errors():
        field = str(item["loc"][0]) if item["loc"] else ""
        where = ".".join(
            [
                path,
                *(str(part) for part in item["loc"] if field not in model.model_fields or _is_place(part, item["loc"])),
            ]
        )
        found[where] = f"{found[where]}, or: {_text(item, model)}" if where in found else _text(item, model)
    return list(found.items())


def _is_place(part: Any, location: tuple[Any, ...]) -> bool:
    """pydantic appends the tried branch of a union to the location; only keys and indices are places in the file."""
    return part == location[0] or isinstance(part, int) or part == "method"


def _text(item: Any, model: type[BaseModel]) -> str:
    if item["type"] == "extra_forbidden":
        return f"unknown key: choose from {', '.join(model.model_fields)}"
    if item["type"] == "missing":
        return "is missing: it has no default"
    return f"{item['msg'][0].lower()}{item['msg'][1:]}; got {item['input']!r}"


def _distillations(methods: Mapping[str, Any], runs: Mapping[str, Any], problems: Problems) -> dict[str, Distillation]:
    """Each run's method merged with the run's own values; a method that no run uses is validated by itself."""
    for name, value in methods.items():
        if not isinstance(value, dict):
            problems.append((f"distill.{name}", f"must be a mapping of settings; got {value!r}"))
    good = {name: value for name, value in methods.items() if isinstance(value, dict)}
    merged: dict[str, Distillation] = {}
    for name, run in runs.items():
        own = dict(run.distill.model_extra or {})
        if run.distill.method not in methods:
            problems.append((f"runs.{name}.distill.method", _unknown(run.distill.method, "distill", methods)))
        elif run.distill.method in good:
            _merge(name, run.distill.method, good[run.distill.method], own, merged, problems)
    for name in set(good) - {run.distill.method for run in runs.values()}:
        _validate(Distillation, good[name], f"distill.{name}", problems)
    return merged


def _merge(
    run: str,
    method: str,
    shared: dict[str, Any],
    own: dict[str, Any],
    merged: dict[str, Distillation],
    problems: Problems,
) -> None:
    """Validate one run's merged settings; a problem is reported where its value stands in the file."""
    found: Problems = []
    settings = _validate(Distillation, {**shared, **own}, "", found)
    if settings is not None:
        merged[run] = settings
    for path, text in found:
        field = path.removeprefix(".").split(".")[0]
        home = f"runs.{run}.distill" if field in own or field not in shared else f"distill.{method}"
        if (home + path, text) not in problems:
            problems.append((home + path, text))


def _unknown(name: str, section: str, known: Mapping[str, Any]) -> str:
    return f"'{name}' is not in the section {section}: choose one of {', '.join(known) or 'none'}, or add it there"


def _check_references(named: Mapping[str, Mapping[str, Any]], problems: Problems) -> None:
    """Every name that points to another section must be there."""
    pointers = {
        "experts": {"dataset": "prepare", "network": "networks"},
        "runs": {"dataset": "prepare", "network": "networks", "experts": "experts", "evaluate": "evaluate"},
    }
    broken = {path.split(".")[1] for path, _ in problems if path.count(".") >= 1}
    for section, fields in pointers.items():
        for name, settings in named[section].items():
            for field, target in fields.items():
                value = getattr(settings, field)
                if value not in named[target] and value not in broken:
                    problems.append((f"{section}.{name}.{field}", _unknown(value, target, named[target])))


def _check_runs(named: Mapping[str, Mapping[str, Any]], distillations: Mapping[str, Distillation], problems: Problems) -> None:
    """Contradictions between sections."""
    for name, run in named["runs"].items():
        experts: Experts | None = named["experts"].get(run.experts)
        settings = distillations.get(name)
        for field in ("dataset", "network") if experts else ():
            mine, theirs = getattr(run, field), getattr(experts, field)
            if mine != theirs:
                text = f"is '{mine}', but its experts '{run.experts}' have '{theirs}': use the same"
                problems.append((f"runs.{name}.{field}", text))
        if settings is not None and settings.iterations > 0:
            problems += _matching_problems(name, run, settings, experts)


def _matching_problems(name: str, run: Run, settings: Distillation, experts: Experts | None) -> Problems:
    """What keeps a run from being matched to its experts."""
    problems: Problems = []
    last = settings.max_start_epoch - 1 + settings.expert_epochs
    if experts is not None and last > experts.epochs:
        text = (
            f"max_start_epoch - 1 + expert_epochs = {last} lies beyond the {experts.epochs} epochs of experts "
            f"'{run.experts}': lower one of the two, or raise experts.{run.experts}.epochs"
        )
        problems.append((f"runs.{name}.distill.max_start_epoch", text))
    if settings.intermediate_loss != "off" and settings.expert_epochs > settings.syn_steps:
        text = f"{settings.expert_epochs} way points do not fit into {settings.syn_steps} syn_steps: change one of the two"
        problems.append((f"runs.{name}.distill.expert_epochs", text))
    if run.ipc == "all":
        text = "'all' takes the whole training split, which can't be distilled: set distill.iterations to 0, or give a number"
        problems.append((f"runs.{name}.ipc", text))
    return problems
