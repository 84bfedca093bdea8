"""report: the artifacts of all runs -> one page that compares them, and a table."""

from __future__ import annotations

import statistics as numbers
from collections.abc import Sequence

from src.ground.params import Params
from src.io import artifacts, charts, cost, files, page, progress, removed
from src.io.charts import Chart, Series
from src.io.page import Curves, Film, Gallery, Group, Page, Panel, Pictures, Result, Spent
from src.io.sheets import out_of_range, sheets
from src.io.tables import Table
from src.stages import results
from src.stages.records import experts_record, prepared, synthetic_settings

WINDOWS = 15  # so many running means fit into a curve side by side


def run(params: Params) -> None:
    """Write data/report/report.html and report.md from what the other stages left on disk.

    What they left of names that params.yaml has no more is set aside then.
    """
    for name in params.runs:
        check(params, name)
    content = page_of(params, params.report.title)
    files.write_text(artifacts.report_file("html"), page.html(content))
    files.write_text(artifacts.report_file("md"), page.markdown(params.report.title, content.results, content.matrix))
    _show(params.report.title, content.results)
    progress.say(f"page: {artifacts.report_file('html')}")
    removed.set_aside(params)


def check(params: Params, name: str) -> None:
    """Raises ArtifactError where an artifact was made with other settings: the page would name today's."""
    run, remedy = params.runs[name], artifacts.remake("distill", name)
    prepared(params, run.dataset)
    for path, kind in (
        (artifacts.synthetic_file(name), artifacts.SYNTHETIC),
        (artifacts.snapshots_file(name), artifacts.SNAPSHOTS),
    ):
        artifacts.check_record(path, synthetic_settings(params, name, kind), remedy)
    if run.experts and artifacts.trajectories_folder(run.experts).exists():  # the page itself takes only their curves
        artifacts.check_trajectories(run.experts, params.experts[run.experts].count, experts_record(params, run.experts))


def page_of(params: Params, title: str) -> Page:
    """The page about the runs of `params`, which are checked."""
    groups = results.groups(params)
    galleries = tuple(Gallery(group, tuple(_pictures(result) for result in group.results)) for group in groups)
    used = list(dict.fromkeys(settings.experts for settings in params.runs.values() if settings.experts))
    matched = [group for group in groups if group.distilled]
    return Page(
        title=title,
        params=params,
        groups=groups,
        panels=_panels(groups),
        matrix=results.matrix(params, [result for group in groups for result in group.results]),
        galleries=galleries,
        films=tuple(_film(result) for group in matched for result in group.distilled),
        matching=tuple(_matching(group) for group in matched),
        experts=_experts(params, used),
        experts_spent=tuple(_experts_spent(params, name) for name in used),
        runs_spent=tuple(_run_spent(params, name) for name in params.runs),
        learned_rates={name: artifacts.load_synthetic(name).syn_lr.item() for name in params.runs},
    )


def _panels(groups: Sequence[Group]) -> tuple[Panel, ...]:
    """A panel a data set, wide enough for every student and deviation."""
    panels = []
    for dataset in dict.fromkeys(group.dataset for group in groups):
        own = tuple(group for group in groups if group.dataset == dataset)
        found = [result for group in own for result in group.results]
        ends = [result.test.mean + side * result.test.std for result in found for side in (-1, 1)]
        students = [accuracy for result in found for accuracy in result.students]
        panels.append(Panel(dataset, own, charts.linear_scale([*(min(end, 1.0) for end in ends), *students], percent=True)))
    return tuple(panels)


# -- images


def _pictures(result: Result) -> Pictures:
    synthetic, classes = artifacts.load_synthetic(result.run), artifacts.load_statistics(result.dataset).classes
    shown = sheets(synthetic.pixels, synthetic.classes, classes)
    return Pictures(result, shown, out_of_range(synthetic.pixels), len(classes))


def _film(result: Result) -> Film:
    """The first image of each class; of many classes, those of the first sheet."""
    synthetic, classes = artifacts.load_synthetic(result.run), artifacts.load_statistics(result.dataset).classes
    snapshots = artifacts.load_snapshots(result.run)
    frames = tuple(sheets(pixels, synthetic.classes, classes, rows=1)[0] for pixels in snapshots.pixels)
    return Film(result, tuple(snapshots.iterations.tolist()), frames)


# -- curves


def _matching(group: Group) -> Curves:
    """Matching loss and learned step size of the distilled runs of a group."""
    columns = ("iteration", "matching_loss", "syn_lr")
    history = {
        r.run: files.read_numbers(artifacts.history_file(r.run), columns, artifacts.remake("distill", r.run))
        for r in group.distilled
    }
    window = max(len(rows) for rows in history.values()) // WINDOWS | 1

    def series(column: str, window: int) -> list[Series]:
        return [
            Series(
                r.run,
                r.colour or 0,
                [row["iteration"] for row in history[r.run]],
                [row[column] for row in history[r.run]],
                window=window,
            )
            for r in group.distilled
        ]

    loss = charts.line_chart("Matching loss", "iteration", series("matching_loss", window), log=True)
    rate = charts.line_chart("Learned step size, syn_lr", "iteration", series("syn_lr", 1))
    return Curves(f"{group.dataset}, {page.per_class(group.ipc)}", (loss, rate), window)


def _experts(params: Params, used: Sequence[str]) -> tuple[Curves, ...]:
    """Smoothness and accuracy of the sets of experts of each data set."""
    found = []
    for dataset in dict.fromkeys(params.experts[name].dataset for name in used):
        names = [name for name in used if params.experts[name].dataset == dataset]
        step = _expert_chart("Squared parameter step of an epoch", "parameter_step", names, log=True)
        accuracy = _expert_chart("Validation accuracy, %", "val_accuracy", names, percent=True)
        found.append(Curves(dataset, (step, accuracy)))
    return tuple(found)


def _expert_chart(title: str, column: str, names: Sequence[str], log: bool = False, percent: bool = False) -> Chart:
    series = []
    for colour, name in enumerate(names):
        by_epoch: dict[int, list[float]] = {}
        path, remedy = artifacts.expert_curves_file(name), artifacts.remake("experts", name)
        for row in files.read_numbers(path, ("epoch", column), remedy):
            by_epoch.setdefault(int(row["epoch"]), []).append(row[column])
        values = list(by_epoch.values())
        series.append(
            Series(
                name,
                colour,
                list(by_epoch),
                [numbers.mean(v) for v in values],
                [min(v) for v in values],
                [max(v) for v in values],
            )
        )
    return charts.line_chart(title, "epoch", series, log, percent)


# -- cost


def _experts_spent(params: Params, name: str) -> Spent:
    settings = params.experts[name]
    found = cost.lookup(artifacts.trajectories_folder(name))
    return Spent(name, f"{settings.count} experts of {settings.epochs} epochs", (found,))


def _run_spent(params: Params, name: str) -> Spent:
    settings, protocol = params.distillations[name], params.evaluate[params.runs[name].evaluate]
    work = f"{settings.iterations:,} iterations" if settings.iterations else "not distilled"
    detail = f"{work}; {protocol.students} students of {protocol.epochs:,} epochs"
    made = (artifacts.synthetic_file(name), artifacts.metrics_file(name))
    return Spent(name, detail, tuple(cost.lookup(path) for path in made))


def _show(title: str, found: Sequence[Result]) -> None:
    table = Table("run", title=title)
    for column in ("images", "validation, %", "test, %", "gain"):
        table.add_column(column, justify="right")
    for r in found:
        table.add_row(
            r.run,
            f"{r.images:,}",
            page.score(r.val),
            page.score(r.test) + r.mark,
            "" if r.gain is None else page.points(r.gain),
        )
    progress.console.print(table)
