"""report: the artifacts of all runs -> one page that compares them, and a table."""

from __future__ import annotations

import statistics as numbers
from collections.abc import Iterable, Mapping, Sequence

from src.pages import charts, markdown, page, standings
from src.pages.charts import Chart, Series
from src.pages.page import Curves, Film, Gallery, Group, Page, Panel, Pictures, Result, Spent
from src.pages.sheets import out_of_range, sheets
from src.pages.tables import Table
from src.process import progress
from src.settings.resolved import Buffer, Pipeline, Run
from src.stages import beyond, results, tuples
from src.stages.beyond import Evaluated
from src.stages.records import check_scores, check_synthetic, experts_record, prepared
from src.store import busy, cost, files, removed, values
from src.store.store import Store, remake

# of histories, what only some methods have
SOMETIMES = {"matched_step": "Step of the student that was matched", "start_bound": "Start epochs lie below"}
WINDOWS = 15  # so many running means fit into a curve side by side


def run(store: Store, pipeline: Pipeline) -> None:
    """Write data/report/report.html and report.md from what the other stages left on disk.

    What they left of names that the pipeline has no more is set aside then.
    """
    with busy.alone("report", "page"):
        _run(store, pipeline)


def _run(store: Store, pipeline: Pipeline) -> None:
    for one in pipeline.runs.values():
        check(store, one)
    content = page_of(store, pipeline.runs, list(pipeline.networks), pipeline.title)
    files.write_text(store.report_file("html"), page.html(content))
    files.write_text(store.report_file("md"), markdown.text(pipeline.title, content.results, content.matrix, content.standings))
    _show(pipeline.title, content)
    progress.say(f"page: {store.report_file('html')}")
    beyond.track(store, pipeline.runs, content.standings)
    removed.set_aside(store, pipeline)


def check(store: Store, run: Run) -> None:
    """Raises ArtifactError where an artifact was made with other settings: the page would name today's."""
    buffer = run.buffer
    prepared(store, run.dataset)
    for kind in (values.SYNTHETIC, values.SNAPSHOTS):
        check_synthetic(store, run, kind)
    if buffer is not None and store.trajectories_folder(buffer.name).exists():  # the page itself takes only their curves
        store.check_trajectories(buffer.name, buffer.settings.count, experts_record(store, buffer))
    check_scores(store, run)


def page_of(
    store: Store, runs: Mapping[str, Run], networks: Sequence[str], title: str, pool: Sequence[Evaluated] | None = None
) -> Page:
    """The page about these runs, which are checked; networks in this order. Scores set them beside the pool, or each other."""
    groups = results.groups(store, runs)
    evaluated = [Evaluated(runs[result.run], result) for group in groups for result in group.results]
    of_images = [group for group in groups if not group.best.tuples]
    galleries = tuple(Gallery(group, tuple(_pictures(store, result) for result in group.results)) for group in of_images)
    used = list({run.buffer.name: run.buffer for run in runs.values() if run.buffer is not None}.values())
    matched = [group for group in groups if group.distilled]
    return Page(
        title=title,
        runs=runs,
        groups=groups,
        panels=_panels(groups),
        matrix=results.matrix(store, runs, networks, [one.result for one in evaluated]),
        standings=beyond.standings(evaluated, evaluated if pool is None else pool),
        galleries=galleries,
        films=tuple(_film(store, result) for group in matched for result in group.distilled if not result.tuples),
        matching=tuple(_matching(store, group) for group in matched),
        experts=_experts(store, used),
        experts_spent=tuple(_experts_spent(store, one) for one in used),
        runs_spent=tuple(_run_spent(store, one) for one in runs.values()),
        learned_rates={name: store.load_synthetic(name).syn_lr.mean().item() for name in runs},
        tuples=tuple(tuples.shown(store, runs[one.result.run]) for one in evaluated if one.result.tuples),
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


def _pictures(store: Store, result: Result) -> Pictures:
    synthetic, classes = store.load_synthetic(result.run), store.load_statistics(result.dataset).classes
    shown = sheets(synthetic.pixels, synthetic.classes, classes)
    certainty = synthetic.labels.max(dim=1).values.mean().item() if synthetic.labels.is_floating_point() else None
    return Pictures(result, shown, out_of_range(synthetic.pixels), len(classes), certainty)


def _film(store: Store, result: Result) -> Film:
    """The first image of each class; of many classes, those of the first sheet."""
    synthetic, classes = store.load_synthetic(result.run), store.load_statistics(result.dataset).classes
    snapshots = store.load_snapshots(result.run)
    frames = tuple(sheets(pixels, synthetic.classes, classes, rows=1)[0] for pixels in snapshots.pixels)
    return Film(result, tuple(snapshots.iterations.tolist()), frames)


# -- curves


def _matching(store: Store, group: Group) -> Curves:
    """Losses and learned step size of the distilled runs of a group, and what else some of them tell."""
    columns = ("iteration", "matching_loss", "syn_lr")
    history = {r.run: files.read_numbers(store.history_file(r.run), columns, remake("distill", r.run)) for r in group.distilled}
    window = max(len(rows) for rows in history.values()) // WINDOWS | 1

    def series(column: str, results: Iterable[Result], window: int = 1) -> list[Series]:
        return [
            Series(
                r.run,
                r.colour or 0,
                [row["iteration"] for row in history[r.run]],
                [row[column] for row in history[r.run]],
                window=window,
            )
            for r in results
        ]

    matched = series("matching_loss", (r for r in group.distilled if r.matches), window)
    loss = charts.line_chart("Matching loss", "iteration", matched, log=True) if matched else None
    rate = charts.line_chart("Learned step size, syn_lr", "iteration", series("syn_lr", group.distilled))
    real = _told(store, group, "real_loss", "Loss on real images", window)
    more = (_told(store, group, column, title) for column, title in SOMETIMES.items())
    shown = tuple(chart for chart in (loss, real, rate, *more) if chart is not None)
    return Curves(f"{group.dataset}, {page.per_class(group.ipc)}", shown, window, real is not None)


def _told(store: Store, group: Group, column: str, title: str, window: int = 1) -> Chart | None:
    """A column of those histories of a group that have it."""
    series = []
    for result in group.distilled:
        path, remedy = store.history_file(result.run), remake("distill", result.run)
        if column in files.read_csv(path, remedy)[0]:
            rows = files.read_numbers(path, ("iteration", column), remedy)
            x, y = ([row[key] for row in rows] for key in ("iteration", column))
            series.append(Series(result.run, result.colour or 0, x, y, window=window))
    return charts.line_chart(title, "iteration", series) if series else None


def _experts(store: Store, used: Sequence[Buffer]) -> tuple[Curves, ...]:
    """Smoothness and accuracy of the sets of experts of each data set."""
    found = []
    for dataset in dict.fromkeys(one.dataset.name for one in used):
        own = [one for one in used if one.dataset.name == dataset]
        names, headline = [one.name for one in own], own[0].dataset.headline
        step = _expert_chart(store, "Squared parameter step of an epoch", "parameter_step", names, log=True)
        accuracy = _expert_chart(store, f"Validation {page.WORDS[headline]}, %", f"val_{headline}", names, percent=True)
        found.append(Curves(dataset, (step, accuracy)))
    return tuple(found)


def _expert_chart(
    store: Store, title: str, column: str, names: Sequence[str], log: bool = False, percent: bool = False
) -> Chart:
    series = []
    for colour, name in enumerate(names):
        by_epoch: dict[int, list[float]] = {}
        path, remedy = store.expert_curves_file(name), remake("experts", name)
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


def _experts_spent(store: Store, buffer: Buffer) -> Spent:
    settings, found = buffer.settings, cost.lookup(store.trajectories_folder(buffer.name))
    return Spent(buffer.name, f"{settings.count} experts of {settings.last_epoch} epochs", (found,))


def _run_spent(store: Store, run: Run) -> Spent:
    iterations, protocol = run.distillation.iterations, run.evaluation
    work = f"{iterations:,} iterations" if iterations else "not distilled"
    detail = f"{work}; {protocol.students} students of {protocol.epochs:,} epochs"
    made = (store.synthetic_file(run.name), store.metrics_file(run.name))
    return Spent(run.name, detail, tuple(cost.lookup(path) for path in made))


def _show(title: str, content: Page) -> None:
    table = Table("run", title=title)
    for column in (page.nouns(content.results), *page.columns(page.figures(content.results)), "gain"):
        table.add_column(column, justify="right")
    for r in content.results:
        table.add_row(
            r.run,
            f"{r.images:,}",
            page.score(r.val),
            page.score(r.test) + r.mark,
            "" if r.gain is None else page.points(r.gain),
        )
    progress.console.print(table)
    if content.standings.columns:
        progress.console.print(_scores(content))
    if any(r.selected for r in content.results):
        progress.say(f"{page.MARK} {page.SELECTED}")


def _scores(content: Page) -> Table:
    (heading, *columns, _), rows = standings.table(content.standings, {result.run: result.mark for result in content.results})
    table = Table(heading)
    for column in columns:
        table.add_column(column, justify="right")
    for *cells, _ in rows:
        table.add_row(*cells)
    return table
