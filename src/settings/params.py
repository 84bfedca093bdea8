"""Reads params.yaml into typed settings and reports everything that is wrong with it at once, before anything runs."""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from src.ground.errors import ParamsError, UnknownNameError, UserError
from src.settings import tuples
from src.settings.base import MISSING, NAME, NAME_RULE, Problems, Settings, describe, spelled_alike
from src.settings.contrast import Similarity
from src.settings.datasets import Dataset
from src.settings.distillation import Distillation
from src.settings.experts import Experts
from src.settings.networks import FAMILIES, Architecture, Network
from src.settings.protocols import Protocol
from src.settings.report import Report
from src.settings.runs import Run
from src.settings.runtime import Runtime
from src.settings.studies import Tune

PARAMS_FILE = Path("params.yaml")
NAMED_SECTIONS: Mapping[str, type[Settings]] = {
    "prepare": Dataset,
    "experts": Experts,
    "evaluate": Protocol,
    "runs": Run,
}
SECTIONS = ("seed", "runtime", "prepare", "networks", "experts", "distill", "evaluate", "tune", "report", "runs")
HALF = "has half a character, as \\ud800 is, which no file can hold: write it without that escape"

Model = TypeVar("Model", bound=BaseModel)


@dataclass(frozen=True)
class Params:
    """The whole of params.yaml. `distillations` holds each run's method merged with the run's own values."""

    seed: int
    runtime: Runtime
    prepare: Mapping[str, Dataset]
    networks: Mapping[str, Network]
    experts: Mapping[str, Experts]
    evaluate: Mapping[str, Protocol]
    tune: Tune
    report: Report
    runs: Mapping[str, Run]
    distillations: Mapping[str, Distillation]
    split_seed: int | None = None  # of data sets that were split under another root seed: a study repeats a run on one split

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

    def matched(self, run: str) -> tuple[str, Experts]:
        """Name and settings of the experts that a run matches or has choose its images; `parse` refuses one without."""
        name = self.runs[run].experts
        assert name is not None
        return name, self.experts[name]

    def network(self, name: str) -> Network:
        if name not in self.networks:
            raise UnknownNameError("network", name, "networks", list(self.networks))
        return self.networks[name]


def check_name(name: str) -> None:
    """Raises UserError where a name can't be one of params.yaml."""
    if not NAME.fullmatch(name):
        raise UserError(f"'{name}' can't be a name: {NAME_RULE}")


def load(file: Path = PARAMS_FILE) -> Params:
    """Read and validate `file`; raises ParamsError with every problem found, or UserError where it can't be read."""
    try:
        text = file.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"{file} is not in {Path.cwd()}: run the command in the repository's top folder") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file} can't be read as text: {error}") from None
    try:
        raw = document(text)
    except (YAMLError, ValueError, KeyError, RecursionError) as error:  # ruamel's constructors raise Python's own
        raise ParamsError(str(file), [("(syntax)", " ".join(str(error).split()))]) from None
    return parse(raw, str(file))


def document(text: str) -> Any:
    """What a text says, fresh each time; a command that edits the file reads the same text again and again."""
    return copy.deepcopy(_document(text))


@functools.lru_cache(maxsize=4)
def _document(text: str) -> Any:
    return YAML(typ="safe").load(text)  # YAML 1.2, the way DVC reads it: 1e-3 is a number


def parse(raw: Any, source: str = "params.yaml") -> Params:
    """Validate a parsed document; raises ParamsError with every problem found."""
    problems: Problems = []
    if not isinstance(raw, dict):
        raise ParamsError(source, [("(top level)", f"must be a mapping of the sections {', '.join(SECTIONS)}")])
    halves = dict.fromkeys(_halves(raw), HALF)
    if halves:
        raise ParamsError(source, list(halves.items()))
    for key in raw:
        if key not in SECTIONS:
            problems.append((str(key), f"unknown section: choose from {', '.join(SECTIONS)}"))
    seed = raw.get("seed")
    if not isinstance(seed, int) or isinstance(seed, bool) or seed < 0:
        problems.append(("seed", f"must be a whole number, 0 or more; got {seed!r}"))
    runtime = _validate(Runtime, raw.get("runtime", {}), "runtime", problems)
    tune = _validate(Tune, raw.get("tune", {}), "tune", problems)
    report = _validate(Report, raw.get("report", {}), "report", problems)
    named: dict[str, Mapping[str, Any]] = {"networks": _networks(raw, problems)}
    named |= {section: _named(model, raw, section, problems) for section, model in NAMED_SECTIONS.items()}
    methods = _mapping(raw, "distill", problems)
    distillations = _distillations(methods, _mapping(raw, "runs", []), problems)
    _check_references(raw, named, problems)
    known = _mapping(raw, "prepare", [])
    problems += [
        (f"tune.ranges.{one}", _unknown(one, "prepare", known)) for one in (tune.ranges if tune else ()) if one not in known
    ]
    _check_runs(named, distillations, problems)
    if problems or runtime is None or tune is None or report is None:
        raise ParamsError(source, problems)
    return Params(seed=seed, runtime=runtime, tune=tune, report=report, distillations=distillations, **named)  # type: ignore[arg-type]


def _halves(raw: Any) -> Iterator[str]:
    """Where a text, or a key, has half a character; what stands there several times, as YAML's anchors let it, counts once."""
    waiting: list[tuple[str, Any]] = [("", raw)]
    seen: set[int] = set()
    for place, value in waiting:
        if isinstance(value, str) and any("\ud800" <= character <= "\udfff" for character in value):
            yield place.encode(errors="backslashreplace").decode()
        if isinstance(value, dict | list) and id(value) not in seen:
            seen.add(id(value))
            for key, own in value.items() if isinstance(value, dict) else enumerate(value):
                inside = f"{place}.{key}".removeprefix(".")
                waiting += [(inside, key), (inside, own)]


def _mapping(raw: Mapping[str, Any], section: str, problems: Problems) -> dict[str, Any]:
    """The section's raw values by name; a name that is refused is there too, so that it is not called absent elsewhere."""
    value = raw.get(section)
    if section == "experts" and value == {}:
        return {}  # where there are baselines alone
    if not isinstance(value, dict) or not value:
        problems.append((section, "must be a mapping of names to settings, with at least one name"))
        return {}
    found = {name: settings for name, settings in value.items() if isinstance(name, str)}
    alike = spelled_alike(found)
    for name in value:
        if name not in found or not NAME.fullmatch(name):
            problems.append((f"{section}.{name}", f"can't be a name: {NAME_RULE}"))
        elif name in alike:
            problems.append((f"{section}.{name}", alike[name]))
    return found


def entry(section: str, name: str, value: Any, source: str) -> Settings:
    """The settings of one entry of prepare, networks, experts, evaluate or runs by itself; raises ParamsError."""
    problems: Problems = []
    raw = {section: {name: value}}
    found = _networks(raw, problems) if section == "networks" else _named(NAMED_SECTIONS[section], raw, section, problems)
    if problems:
        raise ParamsError(source, problems)
    return found[name]


def _named(model: type[Model], raw: Mapping[str, Any], section: str, problems: Problems) -> dict[str, Model]:
    found = {
        name: _validate(model, value, f"{section}.{name}", problems) for name, value in _mapping(raw, section, problems).items()
    }
    return {name: value for name, value in found.items() if value is not None}


def _networks(raw: Mapping[str, Any], problems: Problems) -> dict[str, Architecture]:
    """Networks by name; the family that one belongs to says which keys it may have."""
    found: dict[str, Architecture] = {}
    for name, value in _mapping(raw, "networks", problems).items():
        family = value.get("family", "ConvNet") if isinstance(value, dict) else "ConvNet"
        if not isinstance(family, str) or family not in FAMILIES:
            problems.append((f"networks.{name}.family", f"must be one of {', '.join(FAMILIES)}; got {family!r}"))
            continue
        settings = _validate(FAMILIES[family], value, f"networks.{name}", problems)
        if settings is not None:
            found[name] = settings
    return found


def _validate(model: type[Model], value: Any, path: str, problems: Problems) -> Model | None:
    try:
        return model.model_validate(value)
    except ValidationError as error:
        problems.extend(describe(error, model, value, path))
        return None


def _distillations(methods: Mapping[str, Any], runs: Mapping[str, Any], problems: Problems) -> dict[str, Distillation]:
    """Each raw run's method merged with the run's own values; what a method leaves out, or contradicts, its runs may mend."""
    good: dict[str, dict[str, Any]] = {}
    told: dict[str, Problems] = {}
    used: dict[str, list[Problems]] = {name: [] for name in methods}
    for name, value in methods.items():
        if isinstance(value, dict):
            found: Problems = []
            _validate(Distillation, value, f"distill.{name}", found)
            top = {f"distill.{name}.{field}" for field in Distillation.model_fields}
            told[name] = [(place, text) for place, text in found if text != MISSING or place not in top]
            good[name] = value
        else:
            problems.append((f"distill.{name}", f"must be a mapping of settings; got {value!r}"))
    merged: dict[str, Distillation] = {}
    for name, run in runs.items():
        own = run.get("distill") if isinstance(run, dict) else None
        method = own.get("method") if isinstance(own, dict) else None
        if isinstance(own, dict) and isinstance(method, str) and method not in methods:
            problems.append((f"runs.{name}.distill.method", _unknown(method, "distill", methods)))
        elif isinstance(own, dict) and isinstance(method, str) and method in good:
            own = {key: value for key, value in own.items() if key != "method"}
            settings, found = _merge(f"runs.{name}.distill", good[method], own)
            used[method].append(found)
            if settings is not None:
                merged[name] = settings
    for method, own_problems in told.items():
        problems += _of_a_method(f"distill.{method}", own_problems, used[method])
    return merged


def _merge(path: str, shared: dict[str, Any], own: dict[str, Any]) -> tuple[Distillation | None, Problems]:
    """A run's merged settings, and their problems but those of single values that are the method's."""
    found: Problems = []
    settings = _validate(Distillation, {**shared, **own}, path, found)
    theirs = {*shared} - {*own}
    return settings, [(place, text) for place, text in found if place.removeprefix(f"{path}.").split(".")[0] not in theirs]


def _of_a_method(path: str, own: Problems, used: Sequence[Problems]) -> Problems:
    """A method's problems and those of its runs, with what they all have told once, and what they mend not at all."""
    shared = {text for place, text in own if place == path and all(text in (one for _, one in found) for found in used)}
    mine = [(place, text) for place, text in own if place != path or text in shared]
    return mine + [(place, text) for found in used for place, text in found if text not in shared]


def _unknown(name: str, section: str, known: Mapping[str, Any]) -> str:
    return f"'{name}' is not in the section {section}: choose one of {', '.join(known) or 'none'}, or add it there"


def _check_references(raw: Mapping[str, Any], named: Mapping[str, Mapping[str, Any]], problems: Problems) -> None:
    """Every name that points to another section must stand there, whether or not its settings are right."""
    shared = {"dataset": "prepare", "network": "networks"}
    pointers = {"experts": shared, "runs": {**shared, "cross": "networks", "experts": "experts", "evaluate": "evaluate"}}
    for section, fields in pointers.items():
        for name, settings in named[section].items():
            for field, target in fields.items():
                known, value = _mapping(raw, target, []), getattr(settings, field)
                for one in [value] if isinstance(value, str) else value or ():
                    if one not in known:
                        problems.append((f"{section}.{name}.{field}", _unknown(one, target, known)))


def _check_runs(named: Mapping[str, Mapping[str, Any]], distillations: Mapping[str, Distillation], problems: Problems) -> None:
    """Contradictions between sections."""
    problems += _statistics_problems(named)
    problems += tuples.problems(named, distillations)
    for name, run in named["runs"].items():
        experts: Experts | None = named["experts"].get(run.experts or "")
        settings = distillations.get(name)
        for field, section in (("dataset", "prepare"), ("network", "networks")) if experts else ():
            mine, theirs = getattr(run, field), getattr(experts, field)
            if mine != theirs and {mine, theirs} <= set(named[section]):
                text = f"is '{mine}', but its experts '{run.experts}' have '{theirs}': use the same"
                problems.append((f"runs.{name}.{field}", text))
        if settings is not None and (settings.initialisation == "given") != (settings.given is not None):
            text = "'given' and the set that is given go together: set both, or none"
            problems.append((f"runs.{name}.distill.initialisation", text))
        if settings is not None and run.experts is None and run.ipc != "all" and settings.asks_experts:
            text = "must name experts, which the run matches or has choose its images or labels: null is for random images"
            problems.append((f"runs.{name}.experts", text))
        if settings is not None and settings.iterations > 0:
            problems += [p for p in _matching_problems(name, run, settings, experts) if p not in problems]
        if settings is not None and settings.initial_run is not None:
            problems += _initial_problems(name, settings.initial_run, named["runs"], distillations)


def _statistics_problems(named: Mapping[str, Mapping[str, Any]]) -> Problems:
    """Trajectories are made of parameters alone, so that experts and what is matched to them can't have more."""
    text = "keeps running statistics (norm batch): it can be evaluated, not matched; use norm instance, or name it in `cross`"
    return [
        (f"{section}.{name}.network", f"'{settings.network}' {text}")
        for section in ("experts", "runs")
        for name, settings in named[section].items()
        if settings.network in named["networks"] and named["networks"][settings.network].keeps_statistics
    ]


def _matching_problems(name: str, run: Run, settings: Distillation, experts: Experts | None) -> Problems:
    """What keeps a run from being matched to its experts."""
    problems: Problems = []
    if experts is not None and settings.matches and settings.last_epoch > experts.last_epoch:
        field = "epochs" if experts.stop_epoch is None else "stop_epoch"
        text = (
            f"max_start_epoch - 1 + expert_epochs = {settings.last_epoch} lies beyond the {experts.last_epoch} epochs of "
            f"experts '{run.experts}': lower one of the two, or raise experts.{run.experts}.{field}"
        )
        problems.append((_place(name, run, "max_start_epoch"), text))
    if not settings.way_points_fit:
        text = f"{settings.expert_epochs} way points do not fit into {settings.syn_steps} syn_steps: change one of the two"
        problems.append((_place(name, run, "expert_epochs"), text))
    if run.ipc == "all":
        text = "'all' takes the whole training split, which can't be distilled: set distill.iterations to 0, or give a number"
        problems.append((f"runs.{name}.ipc", text))
    return problems


def _initial_problems(
    name: str, initial: str, runs: Mapping[str, Run], distillations: Mapping[str, Distillation]
) -> Iterator[tuple[str, str]]:
    """What keeps a run from beginning with the synthetic set of another."""
    place, own = f"runs.{name}.distill.initial_run", runs[name]
    if initial not in runs:
        yield place, _unknown(initial, "runs", runs)
        return
    way = [name, initial]
    while way[-1] in distillations and (before := distillations[way[-1]].initial_run) and len({*way}) == len(way):
        way.append(before)
    if initial == name:
        yield place, f"a run can't begin with its own synthetic set: name another run than '{name}'"
    elif len({*way}) < len(way):
        yield place, f"these runs begin with one another, {' with '.join(way)}: have one of them begin otherwise"
    fields = {field: (getattr(own, field), getattr(runs[initial], field)) for field in ("dataset", "ipc")}
    if initial in distillations:
        fields["similarity"] = _shape(distillations[name].similarity), _shape(distillations[initial].similarity)
    for field, (mine, its) in fields.items():
        if mine != its:
            yield place, f"the run '{initial}' has {field} {its}, this one has {mine}: name a run with the same"


def _shape(similarity: Similarity | None) -> str:
    """By which the numbers that come with a synthetic set are read."""
    return "null" if similarity is None else f"{similarity.kind} of rank {similarity.rank}"


def _place(name: str, run: Run, field: str) -> str:
    """Where a run's setting stands in the file: in the run itself, or in its method."""
    own = field in (run.distill.model_extra or {})
    return f"runs.{name}.distill.{field}" if own else f"distill.{run.distill.method}.{field}"
