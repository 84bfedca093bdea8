"""methods of whole groups of presets: a table for each number of images per class, and an overview of all of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich import box
from rich.console import Console

from src.editing.groups import Group
from src.ground import host
from src.maths import scores, significance
from src.maths.significance import Difference
from src.pages import markdown, page
from src.pages.page import Accuracy
from src.pages.tables import Table
from src.process import progress
from src.settings.params import Params
from src.store import files
from src.store.store import Store
from src.studies import methods

OVERVIEW = "overview.md"


@dataclass(frozen=True)
class Column:
    """A table of a group, as the overview has it."""

    title: str
    rows: Mapping[str, Mapping[str, Any]]  # method -> its row in the table's file


def run(
    store: Store,
    params: Params,
    asked: Sequence[Group],
    trials: int | None,
    seeds: int,
    test: bool,
    workers: int | None,
) -> None:
    """Make all tables, one after the other, then print and write the overview."""
    for dataset in {params.run(runs[0]).dataset for group in asked for runs in group.tables.values()}:
        store.load_statistics(dataset)  # says what to do where one is not prepared, before hours of another one
    columns = []
    for group in asked:
        for ipc, runs in group.tables.items():
            name = methods.run(store, params, runs, None, trials, seeds, test, workers)
            columns.append(_column(group, ipc, params.run(runs[0]).dataset, name))
    path = host.workspace() / "data" / "methods" / OVERVIEW
    _show(columns)
    files.write_text(path, _text(columns, seeds))
    progress.say(f"written: {path}")


def _column(group: Group, ipc: int, dataset: str, name: str) -> Column:
    rows = methods.read(name)
    return Column(f"{dataset}, {ipc}", {group.method(ipc, row["run"]): row for row in rows})


def _cells(columns: Sequence[Column]) -> Iterator[tuple[str, ...]]:
    for method in dict.fromkeys(method for column in columns for method in column.rows):
        yield (method, *(_cell(column.rows.get(method)) for column in columns))


def _cell(row: Mapping[str, Any] | None) -> str:
    if row is None or row["problem"]:
        return "-" if row is None else "failed"
    shown = page.score(Accuracy(*scores.mean_and_std(row["seeds"].get("test") or row["seeds"]["val"])))
    if row["difference"] is None:
        return shown
    difference = Difference(**row["difference"])
    return f"{shown} ({page.points(difference.mean)}{'*' if difference.beyond_noise else ''})"


def _about(columns: Sequence[Column], seeds: int) -> str:
    tested = all("test" in row["seeds"] for column in columns for row in column.rows.values() if not row["problem"])
    first = next(iter(columns[0].rows))
    return (
        f"{'Test' if tested else 'Validation'} accuracy, %, by data set and images per class: mean and standard deviation over "
        f"{seeds} seeds, in brackets the points above {first}. *: beyond noise, p < {significance.LEVEL} (Welch's t-test over "
        "the seeds)."
    )


def _show(columns: Sequence[Column]) -> None:
    shown = Table("method", box=box.SIMPLE_HEAD, title="methods")
    for column in columns:
        shown.add_column(column.title, justify="right")
    for row in _cells(columns):
        shown.add_row(*row)
    Console(highlight=False, markup=False).print(shown)


def _text(columns: Sequence[Column], seeds: int) -> str:
    table = markdown.table(("method", *(column.title for column in columns)), list(_cells(columns)), left=(0,))
    return f"# Methods\n\n{table}\n\n{_about(columns, seeds)}\n"
