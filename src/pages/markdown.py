"""The report as a Markdown table, and tables of Markdown."""

from __future__ import annotations

from collections.abc import Sequence

from src.pages import standings
from src.pages.page import MARK, SELECTED, Matrix, Result, columns, figures, lowered, nouns, score, shown_parts
from src.pages.standings import Standings


def text(title: str, results: Sequence[Result], matrix: Matrix | None, beyond: Standings) -> str:
    """A heading and the tables of results, aligned for a terminal. No costs: all of it is reproducible."""
    noun, figure = nouns(results), figures(results)
    per_class = ("images per class",) if "images" in noun else ()
    header = ("run", "data set", *per_class, noun, "method", "parts", *columns(figure), "gain")
    words = tuple(header.index(name) for name in ("run", "data set", "method", "parts"))
    lines = table(header, [_cells(result, bool(per_class)) for result in results], left=words)
    parts = ", ".join(f"{number} {lowered(name)}" for number, name, _ in shown_parts(results))
    notes = (
        f"{figure.capitalize()} of fresh students trained on a run's {noun} alone: "
        "mean ± standard deviation over the students.\n"
        f"Gain: points of test {figure} above real {noun}, not distilled, of the same number.\n"
        f"Parts: {parts}.\n"
    )
    if any(result.tuples for result in results):
        notes += "Mean recall: of tuples, at 1, 5 and 10 in all directions, the mean of all.\n"
    if any(result.selected for result in results):
        notes += f"{MARK} {SELECTED}.\n"
    others = f"\n{_standings(results, beyond)}" if beyond.notes else ""
    others += "" if matrix is None else f"\n{_matrix(matrix)}"
    return f"# {title}\n\n{lines}\n\n{notes}{others}\nMade by `python -m src.cli report`.\n"


def _standings(results: Sequence[Result], beyond: Standings) -> str:
    header, rows = standings.table(beyond, {result.run: result.mark for result in results})
    shown = f"{table(header, rows, left=(0, len(header) - 1))}\n\n" if rows else ""
    notes = "\n".join(f"- {note}" for note in beyond.notes)
    return f"Scores beyond accuracy:\n\n{shown}{notes}\n"


def _matrix(matrix: Matrix) -> str:
    rows = [
        (result.run, *("-" if accuracy is None else score(accuracy) + result.mark for accuracy in accuracies))
        for result, accuracies in matrix.rows
    ]
    return f"Test {matrix.figure}, %, of students of other networks:\n\n{table(('run', *matrix.networks), rows, left=(0,))}\n"


def table(header: Sequence[str], rows: Sequence[Sequence[str]], left: Sequence[int]) -> str:
    """A Markdown table; columns are aligned to the right but for those in `left`."""
    widths = [max(len(row[column]) for row in (header, *rows)) for column in range(len(header))]
    rule = ["-" * width if column in left else "-" * (width - 1) + ":" for column, width in enumerate(widths)]
    lines = []
    for row in (header, rule, *rows):
        cells = [cell.ljust(w) if i in left else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _cells(result: Result, per_class: bool) -> tuple[str, ...]:
    return (
        result.run,
        result.dataset,
        *((str(result.ipc),) if per_class else ()),
        str(result.images),
        result.label,
        " ".join(map(str, result.parts)) or "-",
        score(result.val),
        score(result.test) + result.mark,
        "-" if result.gain is None else f"{result.gain * 100:+.1f}",
    )
