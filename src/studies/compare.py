"""compare: named runs of the pipeline beside each other, and whether they differ by more than noise. It makes no artifact."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

from rich.console import Console

from src.ground.durations import duration
from src.ground.errors import UserError
from src.maths import scores, significance
from src.maths.scores_beyond import Estimate
from src.pages import page, standings
from src.pages.page import Accuracy, Contrast
from src.pages.tables import Table
from src.process import progress
from src.settings.resolved import Pipeline, Run
from src.stages import beyond, report
from src.stages.beyond import Evaluated
from src.store import cost, files
from src.store.cost import Cost
from src.store.store import Store, remake
from src.tracking.tracker import flatten

SPLITS: Mapping[str, str] = {"val": "validation", "test": "test"}
WORK = ("experts", "distill", "evaluate")


@dataclass(frozen=True)
class Compared:
    """One run: its parameters by dotted name, what its students reached by split, and its cost by stage."""

    name: str
    dataset: str
    settings: Mapping[str, str]
    accuracies: Mapping[str, tuple[float, ...]]
    costs: Mapping[str, Cost | None]
    beyond: Mapping[str, Estimate]  # scores beside other runs of the pipeline
    headline: str = "accuracy"  # what they are judged by, as metrics name it
    selected: bool = False  # whether what is of the test split was chosen on it

    def mark(self, split: str) -> str:
        return page.MARK if self.selected and split == "test" else ""


def run(store: Store, pipeline: Pipeline, names: Sequence[str], html: Path | None) -> None:
    """Print a table of the runs and a verdict on each pair; and write a page about them to `html`."""
    if len(names) < 2 or len(set(names)) < len(names):
        raise UserError(f"compare takes two different runs or more, and got {', '.join(names)}: name each once")
    chosen = {name: pipeline.runs[name] for name in names}
    pool = beyond.available(store, pipeline.runs)
    found = [_compared(store, one, pool) for one in chosen.values()]
    if len({one.dataset for one in found}) > 1:
        sets = ", ".join(f"{one.name} on {one.dataset}" for one in found)
        raise UserError(f"runs on different data sets can't be compared ({sets}): name runs on one")
    console = Console(highlight=False, markup=False)
    console.print(table(found))
    for line in (*verdicts(found), *notes(found)):
        console.print(line, soft_wrap=True)
    if html is not None:
        contrast = Contrast(tuple(names), tuple(rows(found)), tuple(verdicts(found)))
        content = replace(
            report.page_of(store, chosen, list(pipeline.networks), " against ".join(names), pool), contrast=contrast
        )
        files.write_text(html, page.html(content))
        progress.say(f"page: {html}")


def _compared(store: Store, run: Run, pool: Sequence[Evaluated]) -> Compared:
    """Raises ArtifactError where the run is not evaluated, or was made with other settings than params.yaml has."""
    name, buffer = run.name, run.buffer
    report.check(store, run)
    path, remedy = store.students_file(name), remake("evaluate", name)
    students = files.read_numbers(path, [f"{split}_{run.dataset.headline}" for split in SPLITS], remedy)
    accuracies = {split: tuple(row[f"{split}_{run.dataset.headline}"] for row in students) for split in SPLITS}
    made = {"distill": store.synthetic_file(name), "evaluate": store.metrics_file(name)}
    if buffer is not None:
        made["experts"] = store.trajectories_folder(buffer.name)
    costs = {stage: cost.lookup(made[stage]) if stage in made else None for stage in WORK}
    own = beyond.standings([one for one in pool if one.run.name == name], pool).rows.get(name)
    scored = own.scores if own else {}
    judged = (run.dataset.headline, run.evaluation.selects_on_test)
    return Compared(name, run.dataset.name, settings(run), accuracies, costs, scored, *judged)


def settings(run: Run) -> dict[str, str]:
    """All that a run depends on, as text; what the experts or the protocol are called does not matter, what they are does."""
    nested: dict[str, Any] = {
        "network": run.spec.model_dump(),
        "ipc": run.ipc,
        "distill": run.distillation.model_dump(),
        "experts": {} if run.buffer is None else run.buffer.settings.model_dump(exclude={"dataset", "network"}),
        "evaluate": run.evaluation.model_dump(),
    }
    return {key: _text(value) for key, value in flatten(nested)}


def _text(value: Any) -> str:
    if isinstance(value, tuple):
        return " ".join(map(str, value)) or "none"
    return f"{value:g}" if isinstance(value, float) else str(value)


def rows(found: Sequence[Compared]) -> Iterator[tuple[str, ...]]:
    """Scores and cost of all runs, and of the parameters those that differ; the first cell says what a row is."""
    for split, heading in zip(SPLITS, page.columns(page.WORDS[found[0].headline]), strict=True):
        accuracies = (Accuracy(*scores.mean_and_std(one.accuracies[split])) for one in found)
        yield (heading, *(page.score(own) + one.mark(split) for own, one in zip(accuracies, found, strict=True)))
    yield from _beyond(found)
    for stage in WORK:
        spent = [one.costs[stage] for one in found]
        yield (f"{stage}, time", *("-" if one is None else duration(one.seconds) for one in spent))
        yield (f"{stage}, memory", *("-" if one is None else f"{one.peak_memory_mib:,.0f} MiB" for one in spent))
    for key in dict.fromkeys(key for one in found for key in one.settings):
        values = tuple(one.settings.get(key, "-") for one in found)
        if len(set(values)) > 1:
            yield (key, *values)


def _beyond(found: Sequence[Compared]) -> Iterator[tuple[str, ...]]:
    """Scores beyond accuracy that a run has."""
    for name in standings.SAYS:
        scored = [(one.beyond.get(name), one.mark("test")) for one in found]
        if any(score is not None for score, _ in scored):
            cells = ("-" if score is None else standings.figure(name, score) + mark for score, mark in scored)
            yield (standings.unit(name), *cells)


def table(found: Sequence[Compared]) -> Table:
    """The rows, a column a run."""
    shown = Table("", *(one.name for one in found))
    scored = len(SPLITS) + len(list(_beyond(found)))
    for number, row in enumerate(rows(found), start=1):
        shown.add_row(*row, end_section=number in (scored, scored + 2 * len(WORK)))
    return shown


def verdicts(found: Sequence[Compared]) -> Iterator[str]:
    """A sentence a pair and split: Welch's t-test over the students."""
    for first, second in combinations(found, 2):
        for split, words in SPLITS.items():
            difference = significance.welch(first.accuracies[split], second.accuracies[split])
            mark = first.mark(split) or second.mark(split)
            yield f"{words}{mark}: {significance.words(difference, first.name, second.name)}"


def notes(found: Sequence[Compared]) -> Iterator[str]:
    """What the mark says, where there is one."""
    if any(one.selected for one in found):
        yield f"{page.MARK} {page.SELECTED}"
