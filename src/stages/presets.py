"""presets: shows ready settings and adds them to params.yaml. No stage of the pipeline: it makes no artifact."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from difflib import get_close_matches
from textwrap import wrap

from rich import box
from rich.console import Console

from src.editing import groups, params_edit, presets, tuples
from src.editing.groups import Group
from src.editing.presets import Preset, Sections
from src.editing.tuples import TuplePreset
from src.ground.errors import UserError
from src.pages.tables import Table
from src.process import progress
from src.settings.params import Params

LIST = "`python -m src.cli preset list` shows all"
FILE_WIDTH = 120  # characters of the table where it is not shown on a terminal


def show_all(dataset: str | None, method: str | None) -> None:
    """Print a table of the presets of a data set and a method; of all where None."""
    known = presets.load().values()
    for value, have in ((dataset, {p.family for p in known}), (method, {p.method for p in known})):
        if value is not None and value not in have:
            raise UserError(f"no preset is for '{value}': choose one of {', '.join(sorted(have))}")
    table = Table("preset", "data set", "ipc", "method", "status", "published, %", "experts x epochs", box=box.SIMPLE_HEAD)
    for preset in known:
        if dataset in (None, preset.family) and method in (None, preset.method):
            accuracy = f"{preset.compare} {preset.published[preset.compare]}" if preset.compare else "-"
            experts = f"{preset.experts} x {preset.epochs}" if preset.experts else "-"
            table.add_row(preset.name, preset.family, str(preset.ipc), preset.method, preset.status, accuracy, experts)
    console = Console(highlight=False, markup=False, width=None if sys.stdout.isatty() else FILE_WIDTH)
    console.print(table)
    console.print("epochs: those that are matched, max_start_epoch - 1 + expert_epochs", style="dim")
    console.print(f"groups of runs for one table of methods: {', '.join(groups.load())}", style="dim", soft_wrap=True)
    console.print(f"of tuples: {', '.join(tuples.load())}", style="dim", soft_wrap=True)


def show(name: str) -> None:
    """Print where a preset or a group comes from and what it would add, as YAML."""
    found = _find(name)
    about = (
        found.about if isinstance(found, TuplePreset) else _about_group(found) if isinstance(found, Group) else _about(found)
    )
    print("\n".join(f"# {line}" for text in about for line in wrap(text, 110, subsequent_indent="  ", break_on_hyphens=False)))
    print(params_edit.text_of(found.sections), end="")


def add(name: str, experts: int | None) -> None:
    """Add a preset or a group to params.yaml, with another number of experts unless None, and print what was added."""
    found = _find(name)
    added = params_edit.add(found.sections if experts is None else _with_experts(found, experts))
    if isinstance(found, Group):
        _say(added, name, *commands(found))
    elif isinstance(found, TuplePreset):
        _say(added, name, *(f"dvc repro evaluate@{run}" for run in found.runs))
    else:
        report_added(added, name)


def report_added(added: list[str], run: str) -> None:
    """Say what was added for a run, and how to go on."""
    _say(added, run, f"dvc repro evaluate@{run}")


def add_data_set(params: Params, sections: Sections, run: str, name: str, digest: str | None, update: bool, items: str) -> None:
    """Add a first run on the data set `name`, whose items have this digest, and say so.

    A data set and experts that params.yaml has may have been changed by hand, and stay. Raises UserError where it has another
    digest, and isn't to be brought up to date.
    """
    known = params.prepare.get(name)
    changed = known is not None and known.sha256 != digest
    if changed and not update:
        said = "are not those that" if known is not None and known.sha256 else "are there, and no others yet that"
        raise UserError(f"the {items} of {name} {said} prepare.{name}.sha256 says: add --update to take them")
    if changed:  # first, as it may be refused
        params_edit.set_value(("prepare", name, "sha256"), digest)
        progress.say(f"prepare.{name}.sha256 is {digest} now")
    kept: Mapping[str, Mapping[str, object]] = {"prepare": params.prepare, "experts": params.experts}
    new = {
        section: {key: entry for key, entry in entries.items() if key not in kept.get(section, {})}
        for section, entries in sections.items()
    }
    report_added(params_edit.add(new), run)


def commands(group: Group) -> list[str]:
    """What makes the tables of a group."""
    dataset = next(iter(group.sections["prepare"]))
    return [f"python -m src.cli prepare --dataset {dataset}", f"python -m src.cli methods {group.name}"]


def _say(added: list[str], name: str, *following: str) -> None:
    print(f"added to params.yaml: {', '.join(added)}" if added else f"params.yaml has all of {name} already")
    for command in following:
        print(f"next: {command}")


def _find(name: str) -> Preset | Group | TuplePreset:
    known: Mapping[str, Preset | Group | TuplePreset] = {**presets.load(), **groups.load(), **tuples.load()}
    if name not in known:
        near = get_close_matches(name, known, n=3, cutoff=0.5)
        meant = f"did you mean {', '.join(near)}? " if near else ""
        raise UserError(f"no preset is named '{name}': {meant}{LIST}")
    return known[name]


def _about(preset: Preset) -> list[str]:
    """What a person should know of a preset, a sentence a line."""
    ipc = "all images" if preset.ipc == "all" else f"{preset.ipc} image{'s' if preset.ipc != 1 else ''} per class"
    origin = "Source" if preset.status == "published" else "Method"
    lines = [
        f"{preset.name}: {preset.method} on {preset.family}, {ipc}; {preset.status}",
        f"{origin}: {preset.source}.",
        f"Ours: {preset.ours}.",
    ]
    if preset.note:
        lines.append(f"Note: {preset.note}.")
    if preset.published:
        figures = ", ".join(f"{method} {value}" for method, value in preset.published.items())
        lines.append(f"Published test accuracy, %: {figures}.")
    if preset.experts:
        (buffer,) = preset.sections["experts"]
        enough = f"experts.{buffer}.stop_epoch {preset.epochs} would do for it"
        lines.append(f"Matches {preset.experts} experts up to epoch {preset.epochs}: {enough}.")
    return lines


def _about_group(group: Group) -> list[str]:
    count = sum(len(runs) for runs in group.tables.values())
    tables = " and ".join(str(ipc) for ipc in group.tables)
    return [
        f"{group.name}: {count} runs for tables of methods at {tables} images per class; ours, to be tuned",
        *commands(group),
    ]


def _with_experts(found: Preset | Group | TuplePreset, count: int) -> Sections:
    if isinstance(found, Preset) and not found.experts:
        raise UserError(f"{found.name} matches no experts: leave --experts out")
    experts = {name: {**settings, "count": count} for name, settings in found.sections["experts"].items()}
    return {**found.sections, "experts": experts}
