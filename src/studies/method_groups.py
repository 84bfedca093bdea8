"""methods of whole groups of presets: a table for each number of images per class, and an overview of all of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from rich import box
from rich.console import Console

from src.editing.groups import Group
from src.ground.errors import UserError
from src.maths import scores, significance
from src.pages import markdown, page
from src.pages.page import Accuracy
from src.pages.tables import Table
from src.process import progress
from src.settings.params import Params
from src.store import files
from src.store.store import Store
from src.studies import methods
from src.studies.methods import Row

OVERVIEW = "overview.md"


@dataclass(frozen=True)
class Column:
    """A table of a group, as the overview has it."""

    title: str
    rows: Mapping[str, Row]  # by method


def run(
    store: Store,
    params: Params,
    asked: Sequence[Group],
    trials: int | None,
    seeds: int,
    test: bool,
    workers: int | None,
    yes: bool = False,
) -> None:
    """Make all tables, one after the other, then print and write the overview.

    Raises UserError, before any of it, where what is there has more, unless `yes` gives that away.
    """
    if not yes:
        for runs in (runs for group in asked for runs in group.tables.values()):
            methods.check(params, runs, None, trials, seeds, test)
        _check(params, asked)
    for dataset in {params.run(runs[0]).dataset for group in asked for runs in group.tables.values()}:
        store.load_statistics(dataset)  # says what to do where one is not prepared, before hours of another one
    columns = []
    for group in asked:
        for ipc, runs in group.tables.items():
            rows = methods.run(store, params, runs, None, trials, seeds, test, workers, yes=True)
            title = _title(params, ipc, runs)
            columns.append(Column(title, {group.method(ipc, row.run): row for row in rows}))
    path = methods.folder() / OVERVIEW
    _show(columns)
    files.write_text(path, _text(columns, seeds))
    progress.say(f"written: {path}")


def _title(params: Params, ipc: int, runs: Sequence[str]) -> str:
    return f"{params.run(runs[0]).dataset}, {ipc}"


def _check(params: Params, asked: Sequence[Group]) -> None:
    """Raises UserError where the overview that is there has tables of other groups."""
    path = methods.folder() / OVERVIEW
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    header = next((line for line in lines if line.startswith("| method ")), "")
    own = {_title(params, ipc, runs) for group in asked for ipc, runs in group.tables.items()}
    others = [title for title in (cell.strip() for cell in header.split("|")[2:-1]) if title not in own]
    if others:
        raise UserError(f"{path} has the tables {'; '.join(others)} too: name their groups as well, or add --yes to replace it")


def _cells(columns: Sequence[Column]) -> Iterator[tuple[str, ...]]:
    for method in dict.fromkeys(method for column in columns for method in column.rows):
        yield (method, *(_cell(column.rows.get(method)) for column in columns))


def _cell(row: Row | None) -> str:
    if row is None or row.problem:
        return "-" if row is None else "failed"
    shown = page.score(Accuracy(*scores.mean_and_std(row.seeds["test" if "test" in row.seeds else "val"])))
    if row.difference is None:
        return shown
    return f"{shown} ({page.points(row.difference.mean)}{'*' if row.difference.beyond_noise else ''})"


def _about(columns: Sequence[Column], seeds: int) -> str:
    tested = all("test" in row.seeds for column in columns for row in column.rows.values() if not row.problem)
    first = next(iter(columns[0].rows))
    return (
        f"{'Test' if tested else 'Validation'} accuracy, %, by data set and images per class: mean and standard deviation over "
        f"{seeds} seeds, in brackets the points above {first}. *: beyond noise, p < {significance.LEVEL} (paired t-test over "
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
