"""methods: one table of methods: runs of one cell, each tuned by as many trials, then repeated by as many seeds.

The studies choose on the validation split, under the root seed of `params.yaml`; the repetitions have other seeds, so that no
figure of the table is one that a choice rests on. A run that begins with another's synthetic set begins, in its study and in
each repetition, with what that run, tuned where it is one of the table, made under the same seed.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState
from rich import box
from rich.console import Console

from src.ground import host
from src.ground.counting import counted
from src.ground.durations import duration
from src.ground.errors import ArtifactError, InterruptedWorkError, UserError
from src.ground.seeding import seed_of
from src.maths import scores, significance
from src.maths.significance import Difference
from src.pages import markdown, page
from src.pages.page import Accuracy
from src.pages.tables import Table
from src.process import progress
from src.settings import resolved
from src.settings.params import Params
from src.settings.resolved import Buffer, Run
from src.settings.studies import Range, Ranges, Tune
from src.store import cost, files
from src.store.store import Store
from src.studies import processes, repeated, space, study, variants
from src.studies import tune as tuning
from src.studies.repeated import Line
from src.studies.variants import Changes, Workspace
from src.tracking import tracker as tracking
from src.tracking.tracker import Nest

# what a run's method is, and what sets the cost of its trials
HELD = {"initialisation", "balanced_loss", "intermediate_loss", "weight_perturbation", "syn_steps"}


@dataclass(frozen=True)
class Tuned:
    """What a run's study found."""

    changes: Changes = field(default_factory=Changes)  # of the best trial; of a run without a study, nothing
    trials: int = 0
    seconds: float = 0.0  # at work, of all trials, and those of the runs whose sets it begins with
    problem: str = ""


@dataclass(frozen=True)
class Row:
    """A run of the table: the mean of each seed's students by split, and how the last split's differs from the run
    that it is compared with."""

    run: str
    trials: int
    distill: Mapping[str, Any]  # what the best trial has in place of the run's own settings
    seeds: Mapping[str, tuple[float, ...]]
    seconds: float  # of the study, and of the seeds' experts, distillation and students
    difference: Difference | None = None
    problem: str = ""


def run(
    store: Store,
    params: Params,
    names: Sequence[str],
    against: str | None,
    trials: int | None,
    seeds: int,
    test: bool,
    workers: int | None,
    yes: bool = False,
) -> Sequence[Row]:
    """Make what is not there yet, then print and write the table; its rows.

    Raises UserError, before any of it, where the table that is there has more, unless `yes` gives that away.
    """
    if not yes:
        check(params, names, against, trials, seeds, test)
    runs, tune = chosen(params, names, against), params.tune
    first, splits = runs[0], ("val", "test") if test else ("val",)
    dataset, wanted = first.dataset.name, tune.trials if trials is None else trials
    name, experiment = _name(first), f"{dataset}-studies"
    count = processes.count(first.runtime, workers)
    workspace = repeated.workspace(store, "methods", dataset, dataset)  # experts of a seed are for every cell
    find = {"ast.methods": f"{name} of {workspace.folder.name}"}
    with tracking.track(experiment, f"methods {name}", "methods", find) as tracker:
        nest = Nest(experiment, tracker.opening)
        tuned = _tune_all(store, runs, tune, workspace, nest, wanted, count)
        workspace.lend(dataset, test)  # not before: studies do without
        lines = {one.name: _of_seeds(one, tune, tuned, seeds) for one in runs if not tuned[one.name].problem}
        problems = repeated.make("methods", first.runtime, lines, workspace, nest, splits, count)
        tracker.end_children()
        problems = {name: repeated.problem(own, problems) for name, own in lines.items()}
        problems |= {name: one.problem for name, one in tuned.items() if one.problem}
        with workspace.entered():
            found = table(names, against or names[0], tuned, lines, splits, problems)
        written = _write(name, found, seeds, against or names[0], page.WORDS[first.dataset.headline])
        for path in written:
            tracker.file(path)
    _show(found, name, seeds, against or names[0], page.WORDS[first.dataset.headline])
    progress.say(f"written: {', '.join(str(path) for path in written)}")
    return found


def folder() -> Path:
    """Of all tables."""
    return host.workspace() / "data" / "methods"


def _name(one: Run) -> str:
    """Of the table that has this run."""
    return f"{one.dataset.name}-ipc{one.ipc}-{one.network}"


def check(params: Params, names: Sequence[str], against: str | None, trials: int | None, seeds: int, test: bool) -> None:
    """Raises UserError where the table that is there has figures that the one of this command would not have.

    It may be all that is left of them: tables are in git, what they were made from is not.
    """
    runs = {one.name: one for one in chosen(params, names, against)}
    path = folder() / f"{_name(runs[names[0]])}.json"
    lost: list[str] = []
    with contextlib.suppress(ArtifactError), files.understood(path, ""):  # missing, or damaged: it is replaced
        rows = {row["run"]: row for row in files.read_json(path, "")["rows"] if not row["problem"]}
        lost = list(_lost(rows, runs, params.tune.trials if trials is None else trials, seeds, test))
    if lost:
        raise UserError(
            f"{path} has {', '.join(lost)}, and the table of this command would not: ask for all of it, or add --yes to "
            "replace it"
        )


def _lost(rows: Mapping[str, Mapping[str, Any]], runs: Mapping[str, Run], trials: int, seeds: int, test: bool) -> Iterator[str]:
    """What these rows have that a table of these runs would not, in words."""
    others = [name for name in rows if name not in runs]
    if others:
        yield f"the run{'s' if len(others) > 1 else ''} {', '.join(others)}"
    kept = {name: row for name, row in rows.items() if name in runs}
    repeated_by = max((len(row["seeds"]["val"]) for row in kept.values()), default=0)
    if repeated_by > seeds:
        yield f"{repeated_by} seeds"
    if not test and any("test" in row["seeds"] for row in kept.values()):
        yield "test figures (--test)"
    tuned_by = {row["trials"] for name, row in kept.items() if runs[name].distillation.iterations}
    for other in sorted(tuned_by - {trials}):
        yield f"settings by {counted(other, 'trial')}"


def chosen(params: Params, names: Sequence[str], against: str | None) -> list[Run]:
    """The runs; those whose experts have the same settings name the same, so that a seed trains them once.

    Raises UserError where one table can't hold them.
    """
    if len(names) < 2 or len(set(names)) < len(names):
        raise UserError(f"methods takes two different runs or more, and got {', '.join(names)}: name each once")
    if against is not None and against not in names:
        raise UserError(f"--against {against} is none of the runs of the table: name one of {', '.join(names)}")
    runs = [resolved.run(params, name) for name in names]
    for other in runs[1:]:
        for words, mine, its, same in _cell(runs[0], other):
            if not same:
                raise UserError(
                    f"one table has one {words}, but {runs[0].name} has {mine} and {other.name} has {its}: name runs that agree"
                )
    for one in runs:
        repeated.check_seeds(one)
    buffers: list[Buffer] = []
    return [_sharing(one, buffers) for one in runs]


def _cell(one: Run, other: Run) -> Iterator[tuple[str, object, object, bool]]:
    """What runs of a table have in common: in words, of either, and whether it is the same."""
    yield "data set", one.dataset.name, other.dataset.name, one.dataset.name == other.dataset.name
    yield "network", one.network, other.network, one.spec == other.spec
    yield "number of tuples" if one.dataset.tuples else "number of images per class", one.ipc, other.ipc, one.ipc == other.ipc
    yield "evaluation protocol", one.protocol, other.protocol, one.evaluation == other.evaluation


def _sharing(one: Run, buffers: list[Buffer]) -> Run:
    if one.initial is not None:
        one = replace(one, initial=_sharing(one.initial, buffers))
    if one.buffer is None:
        return one
    own = next((buffer for buffer in buffers if buffer.settings == one.experts.settings), one.experts)
    buffers.append(own)
    return replace(one, buffer=own)


# -- tuning


def _tune_all(
    store: Store,
    runs: Sequence[Run],
    tune: Tune,
    workspace: Workspace,
    nest: Nest,
    trials: int,
    workers: int,
) -> dict[str, Tuned]:
    """A study a run, one after the other, those first with whose sets others begin; by the run's name.

    Raises UserError, before any of them, where a range does not fit its run.
    """
    searched = {one.name: at_one_budget(one, tune) for one in runs if trials and one.distillation.iterations}
    for one in runs:
        if one.name in searched:
            space.build(one, searched[one.name], "student")
    found: dict[str, Tuned] = {}
    for one in sorted(runs, key=lambda one: len(one.initials)):
        lost = next((first.name for first in one.initials if first.name in found and found[first.name].problem), None)
        if lost is not None:
            found[one.name] = Tuned(problem=f"it begins with {lost}, which failed")
        elif one.name not in searched:
            found[one.name] = Tuned()
        else:
            own = searched[one.name]
            begun, problem = _begun(one, own, found, workspace, nest, workers)
            found[one.name] = Tuned(problem=problem) if problem else _tune(store, begun, own, workspace, trials, workers)
    before = {one.name: sum(found[first.name].seconds for first in one.initials if first.name in found) for one in runs}
    return {name: replace(one, seconds=one.seconds + before[name]) for name, one in found.items()}


def at_one_budget(one: Run, tune: Tune) -> Tune:
    """A search that leaves alone what makes the run's method, and its number of student steps, unless the data set's own ranges
    have it: MTT with one of AST's parts would be no MTT.
    """
    own = tune.ranges.get(one.dataset.name, Ranges())
    fields = [name.removeprefix("distill.") for name in space.start(one, tune, "student")]
    kept = {name: Range(choices=(getattr(one.distillation, name),)) for name in fields if name in HELD}
    held = {**kept, **own.distill}
    return tune.model_copy(update={"ranges": {**tune.ranges, one.dataset.name: own.model_copy(update={"distill": held})}})


def _begun(one: Run, tune: Tune, tuned: Mapping[str, Tuned], workspace: Workspace, nest: Nest, workers: int) -> tuple[Run, str]:
    """The run as its study has it, beginning with a set that is made in the workspace; and what kept that from being made."""
    if one.initial is None:
        return one, ""
    protocol = variants.protocol_of(one.initial, tune)
    line = repeated.line(one.initial, tune, _changes(tuned), one.seed, protocol)
    problems = repeated.make("methods", one.runtime, {one.initial.name: [line]}, workspace, nest, ("val",), workers)
    return variants.beginning_with(one, line[-1].run), repeated.problem([line], problems)


def _tune(store: Store, base: Run, tune: Tune, workspace: Workspace, trials: int, workers: int) -> Tuned:
    """The run's study, of which the first so many trials count: a study that has more of them gives its run no advantage."""
    plan = tuning.plan_of(store, base, tune, "student")
    if len(_first(plan.open(), trials)) < trials:
        try:
            tuning.search(base, tune, "student", plan, workspace, trials, None, workers)
        except InterruptedWorkError:
            raise
        except UserError as error:  # of its experts: other runs go on
            return Tuned(problem=str(error))
    done = _first(plan.open(), trials)
    if len(done) < trials:
        left = f"{trials - len(done)} of its {trials} trials are not there, in the hands of another process or not to be had"
        raise UserError(
            f"{base.name}: {left}: see {workspace.folder / 'log.txt'}, and run this again, with fewer --trials if need be"
        )
    seconds = sum(trial.user_attrs.get("seconds", 0.0) for trial in done)
    complete = [trial for trial in done if trial.state == TrialState.COMPLETE]
    if not complete:
        return Tuned(
            Changes(), len(done), seconds, f"none of the {len(done)} trials of its study is complete: see {plan.folder}"
        )
    best = max(complete, key=lambda trial: trial.value or 0.0)  # of equals the first, which is the run as it is
    changes = space.changes(best.params) if best.number else Changes()
    return Tuned(changes, len(done), seconds)


def _first(opened: optuna.Study, trials: int) -> list[FrozenTrial]:
    return [trial for trial in study.finished(opened) if trial.number < trials]


def _changes(tuned: Mapping[str, Tuned]) -> dict[str, Changes]:
    return {name: one.changes for name, one in tuned.items()}


def _of_seeds(base: Run, tune: Tune, tuned: Mapping[str, Tuned], seeds: int) -> list[Line]:
    """Scored by students of the run's own protocol, as `evaluate` does, never chosen on the test split."""
    roots = [seed_of(base.seed, "methods", number) for number in range(seeds)]
    protocol = base.evaluation.model_copy(update={"score": "last"})
    return [repeated.line(base, tune, _changes(tuned), root, protocol) for root in roots]


# -- the table


def table(
    names: Sequence[str],
    against: str,
    tuned: Mapping[str, Tuned],
    lines: Mapping[str, Sequence[Line]],
    splits: tuple[str, ...],
    problems: Mapping[str, str],
) -> list[Row]:
    """A row a run, inside the workspace; a run with a problem has no figures."""
    means = {name: repeated.means(lines[name], splits) if name in lines else {} for name in names}
    found = []
    for name in names:
        own, seeds = tuned[name], means[name]
        spent = own.seconds + (_seconds(lines[name], splits) if seeds else 0.0)
        row = Row(name, own.trials, own.changes.distill, seeds, spent, problem="" if seeds else problems[name])
        if name != against and seeds and means[against]:
            row = replace(row, difference=significance.paired(means[against][splits[-1]], seeds[splits[-1]]))
        found.append(row)
    return found


def _seconds(own: Sequence[Line], splits: tuple[str, ...]) -> float:
    """What a run's seeds take by themselves, whatever of it they share with other runs."""
    made = [variant for line in own for variant in line]
    folders = {Store().trajectories_folder(variant.experts) for variant in made if variant.run.buffer is not None}
    costs = [cost.lookup(folder) for folder in folders]
    return sum(one.seconds for one in costs if one is not None) + sum(variants.seconds(variant, splits) for variant in made)


BEHIND = ("points", "p", "time", "verdict")


def _rows(found: Sequence[Row], against: str) -> Iterator[tuple[str, ...]]:
    for one in found:
        time = duration(one.seconds)
        if one.problem:
            yield (one.run, str(one.trials), "failed", "-", "", "", time, one.problem)
            continue
        accuracies = [
            page.score(Accuracy(*scores.mean_and_std(one.seeds[s]))) if s in one.seeds else "-" for s in ("val", "test")
        ]
        if one.difference is None:
            yield (one.run, str(one.trials), *accuracies, "", "", time, "")
        else:
            verdict = f"{'beyond noise' if one.difference.beyond_noise else 'may be noise'}, against {against}"
            figures = (page.points(one.difference.mean), f"{one.difference.p:.2g}")
            yield (one.run, str(one.trials), *accuracies, *figures, time, verdict)


def _show(found: Sequence[Row], name: str, seeds: int, against: str, figure: str) -> None:
    tested, (on_val, on_test) = any("test" in one.seeds for one in found), page.columns(figure)
    shown = Table("run", "trials", on_val, box=box.SIMPLE_HEAD, title=f"{name}, {seeds} seeds")
    for column in (*((on_test,) if tested else ()), "points", "p", "time"):
        shown.add_column(column, justify="right")
    for one, (label, trials, val, test, points, p, time, _) in zip(found, _rows(found, against), strict=True):
        mark = "*" if one.difference is not None and one.difference.beyond_noise else " "
        shown.add_row(label, trials, val, *((test,) if tested else ()), points, f"{p}{mark}", time)
    console = Console(highlight=False, markup=False)
    console.print(shown)
    split = "test" if tested else "validation"
    console.print(
        f"points and p: of {split} {figure}, against {against}. *: beyond noise, p < {significance.LEVEL}", style="dim"
    )
    for one in found:
        if one.problem:
            console.print(f"{one.run} failed: {one.problem}", soft_wrap=True)


def _write(name: str, found: Sequence[Row], seeds: int, against: str, figure: str) -> tuple[Path, ...]:
    files.write_json(folder() / f"{name}.json", {"against": against, "rows": [asdict(one) for one in found]})
    text = markdown.table(("run", "trials", *page.columns(figure), *BEHIND), list(_rows(found, against)), left=(0, 7))
    split = "test" if any("test" in one.seeds for one in found) else "validation"
    searched = any(one.trials for one in found)
    chosen_by = f"the best of so many trials, by validation {figure} under another seed" if searched else "the runs' own"
    about = (
        f"Mean and standard deviation over {seeds} seeds, each with experts, draws and students of its own; points and p\n"
        f"(paired t-test over the seeds, each row by itself) of {split} {figure}. Settings: {chosen_by}.\n"
        "Time: of the trials, and of the seeds' experts, distillation and students."
    )
    settings = [
        f"- {one.run}: {', '.join(f'{field} {value}' for field, value in one.distill.items())}" for one in found if one.distill
    ]
    chosen = ["What the best trials have in place of their runs' own settings:\n\n" + "\n".join(settings)] if settings else []
    files.write_text(folder() / f"{name}.md", "\n\n".join((f"# Methods: {name}", text, about, *chosen)) + "\n")
    return tuple(folder() / f"{name}.{kind}" for kind in ("json", "md"))
