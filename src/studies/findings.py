"""What a study has found: for the screen, for MLflow, and as a run of its own in params.yaml."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from statistics import stdev
from typing import Any

import matplotlib.pyplot as plt
import optuna
from optuna.trial import FrozenTrial, TrialState
from optuna.visualization import matplotlib as plots
from rich.console import Console

from src.editing import params_edit
from src.ground import host
from src.ground.errors import UserError
from src.maths import significance
from src.pages.page import WORDS, columns
from src.pages.tables import Table
from src.process import progress
from src.process.progress import Advance
from src.settings.params import Params
from src.settings.resolved import Run
from src.settings.studies import Tune
from src.store import files
from src.studies import space, study, study_log, usefulness
from src.studies.space import Side
from src.studies.study import Study
from src.studies.usefulness import Experts, Point
from src.studies.variants import Changes
from src.tracking.tracker import Tracker

SHOWN = 3  # trials of the table, beside the start
PLOTS: dict[str, Callable[[optuna.Study], Any]] = {
    "history": plots.plot_optimization_history,
    "importances": plots.plot_param_importances,
    "parallel_coordinate": plots.plot_parallel_coordinate,
}


def describe(tracker: Tracker, base: Run, tune: Tune, side: Side, plan: Study) -> None:
    """What the study's MLflow run says before any trial."""
    searched = {name: str(distribution) for name, distribution in plan.space.items()}
    settings = tune.model_dump(exclude={"ranges", "trials", "storage"})
    if tune.storage is not None:
        settings["storage"] = study.address(tune.storage)  # others read this row
    tracker.params({"run": base.name, "side": side, "seed": base.seed, "tune": settings, "space": searched})
    journal = plan.folder / study_log.JOURNAL
    tracker.tags({"optuna.journal": journal.relative_to(host.workspace()).as_posix()})  # the store may move with its folder


def tell_new(opened: optuna.Study, told: int, tracker: Tracker, advance: Advance, headline: str) -> int:
    """Pass on how many trials have finished since; returns how many have in all."""
    done, top = study.finished(opened), study.best(opened)
    for number in range(told, len(done)):
        advance("" if top is None else f"best {top.value:.1%}, trial {top.number}")
        if top is not None and top.value is not None:
            tracker.metrics({f"best_val_{headline}": top.value}, number + 1)
    return len(done)


def log(opened: optuna.Study, tracker: Tracker, plan: Study) -> None:
    """Plots, importances and the table of trials into the study's MLflow run."""
    rows = [_row(trial, plan.headline) for trial in study.finished(opened)]
    if rows:
        table = plan.folder / "trials.csv"
        files.write_csv(table, [{key: row.get(key, "") for key in _columns(rows)} for row in rows])
        tracker.file(table)
    top = study.best(opened)
    if top is not None and top.value is not None:
        tracker.tags({"optuna.best": str(top.number)} | {f"best.{name}": str(value) for name, value in top.params.items()})
        tracker.metrics({f"importance/{name}": value for name, value in study.importances(opened).items()}, len(rows))
    for name, plot in PLOTS.items():
        _log_plot(opened, tracker, name, plot)
    points = _points(opened)
    if points:
        figure = usefulness.figure(points, WORDS[plan.headline])
        tracker.figure("figures/experts.png", figure)
        plt.close(figure)


def _points(opened: optuna.Study) -> list[Point]:
    """The complete trials that trained experts of their own."""
    complete = (t for t in study.finished(opened) if t.state == TrialState.COMPLETE and "experts" in t.user_attrs)
    return [Point(Experts(**t.user_attrs["experts"]), t.value or 0.0, "trials") for t in complete]


def _row(trial: FrozenTrial, headline: str) -> dict[str, Any]:
    attributes = trial.user_attrs
    about = {"trial": trial.number, "state": trial.state.name, f"val_{headline}": "" if trial.value is None else trial.value}
    about |= {"std": _std(trial), "seconds": round(attributes.get("seconds", 0))}
    return {**about, **trial.params, "variant": attributes.get("variant", ""), "sentence": attributes.get("sentence", "")}


def _columns(rows: list[dict[str, Any]]) -> list[str]:
    return list(dict.fromkeys(key for row in rows for key in row))


def _std(trial: FrozenTrial) -> float | str:
    accuracies = trial.user_attrs.get("accuracies", ())
    return stdev(accuracies) if len(accuracies) > 1 else ""


def _log_plot(opened: optuna.Study, tracker: Tracker, name: str, plot: Callable[[optuna.Study], Any]) -> None:
    if not study.importances(opened):  # too few trials to plot anything of
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Optuna calls these plots experimental
        axes = plot(opened)
    figure = axes.figure
    figure.set_size_inches(12, 6)
    figure.tight_layout()
    tracker.figure(f"figures/{name}.png", figure)
    plt.close(figure)


def show(opened: optuna.Study, plan: Study) -> None:
    """Print the best trials beside the start, and whether they differ by more than noise."""
    done, top, first = study.finished(opened), study.best(opened), _first(opened)
    states = ", ".join(f"{sum(t.state == s for t in done)} {s.name.lower()}" for s in study.FINISHED)
    console = Console(highlight=False, markup=False)
    console.print(f"{plan.name}: {len(done)} trials ({states})", soft_wrap=True)
    if top is None:
        return console.print("no trial is complete, so there is nothing to choose from", soft_wrap=True)
    complete = sorted((t for t in done if t.state == TrialState.COMPLETE), key=lambda t: -(t.value or 0))
    chosen = list(dict.fromkeys([*(t.number for t in complete[:SHOWN]), *([first.number] if first else [])]))
    console.print(_table([t for t in complete if t.number in chosen], plan, study.importances(opened)))
    if first is not None and top.number != first.number:
        difference = significance.welch(*(t.user_attrs["accuracies"] for t in (first, top)))
        console.print(significance.words(difference, "the start", f"trial {top.number}"), soft_wrap=True)
        console.print(
            "the best of many is chosen by luck too: `evaluate` will say what it is worth on fresh students", style="dim"
        )
    console.print(f"optuna-dashboard {plan.folder / study_log.JOURNAL}   # to look at the study", soft_wrap=True, style="dim")
    return None


def _table(shown: list[FrozenTrial], plan: Study, importances: dict[str, float]) -> Table:
    """A row a parameter, a column a trial: there are more parameters than trials to show."""
    table = Table("", *("start" if t.number == 0 else f"trial {t.number}" for t in shown), "importance")
    means = (f"{100 * (t.value or 0):.1f} ± {100 * float(_std(t) or 0):.1f}" for t in shown)
    table.add_row(columns(WORDS[plan.headline])[0], *means)
    table.add_section()
    for name in plan.space:
        share = f"{importances[name]:.0%}" if name in importances else ""
        table.add_row(name, *(_text(t.params[name]) for t in shown), share)
    return table


def _text(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _first(opened: optuna.Study) -> FrozenTrial | None:
    """The start, where it is complete."""
    return next((t for t in study.finished(opened) if t.number == 0 and t.state == TrialState.COMPLETE), None)


def apply(opened: optuna.Study, params: Params, base: str) -> None:
    """Add the best trial to params.yaml as the run BASE-tuned, with experts of their own where it has others."""
    top = study.best(opened)
    if top is None:
        raise UserError(f"the study of {base} has no complete trial: run `python -m src.cli tune --run {base}` first")
    if top.number == 0:
        return progress.say(f"no trial is better than {base} as it is: nothing to apply")
    added = params_edit.add(_additions(params, base, space.changes(top.params)))
    print(f"added to params.yaml: {', '.join(added)}" if added else f"params.yaml has {base}-tuned already")
    print(f"next: dvc repro evaluate@{base}-tuned")
    return None


def _additions(params: Params, base: str, found: Changes) -> params_edit.Additions:
    run, name = params.runs[base], f"{base}-tuned"
    own = {**(run.distill.model_extra or {}), **found.distill}
    entry = run.model_dump(exclude={"distill"}, exclude_defaults=True)
    entry["distill"] = {"method": run.distill.method, **own}
    if not found.experts:
        return {"runs": {name: entry}}
    own_name, own_experts = params.matched(base)
    experts = {**own_experts.model_dump(exclude_defaults=True), **found.experts}
    entry["experts"] = f"{own_name}-tuned"
    return {"experts": {entry["experts"]: experts}, "runs": {name: entry}}
