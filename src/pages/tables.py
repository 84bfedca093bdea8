"""Tables for the screen: plain text, of which no letter is lost however narrow the terminal is.

A column that can't have its width is folded, within words where it must be; the first one, which names things, is not. Where
even that is too wide, each row becomes a few lines of its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rich import table
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.text import Text

NARROWEST = 6  # characters to which a column may be folded


class Table(table.Table):
    """rich's table of headers and cells that are text; a bracket is a bracket, no markup."""

    def __init__(self, *headers: str, title: str = "", **options: Any) -> None:
        about = Text(title, style="table.title") if title else None
        super().__init__(*headers, title=about, title_justify="left", **options)

    def add_column(self, header: RenderableType = "", footer: RenderableType = "", **options: Any) -> None:
        super().add_column(Text(str(header)), footer, **{**options, "overflow": "fold"})

    def add_row(self, *cells: RenderableType | None, **options: Any) -> None:
        super().add_row(*(Text(str(cell)) for cell in cells), **options)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        widths = self._widths(options.max_width - self._extra_width - sum(self._get_padding_width(i) for i in self._numbers))
        if widths is None:
            yield from self._lines()
            return
        for column, width in zip(self.columns, widths, strict=True):
            column.width = width
        yield from super().__rich_console__(console, options)

    @property
    def _numbers(self) -> range:
        return range(len(self.columns))

    def _texts(self, number: int) -> list[str]:
        """The header and cells of a column."""
        column = self.columns[number]
        return [str(column.header), *map(str, column.cells)]

    def _widths(self, available: int) -> list[int] | None:
        """As wide as the text, or only the widest columns are narrower; None where there is no room even so."""
        texts = [self._texts(number) for number in self._numbers]
        wanted = [max(map(cell_len, column)) for column in texts]
        longest = max(map(cell_len, " ".join(texts[0]).split()), default=0)
        found = [longest, *(min(NARROWEST, width) for width in wanted[1:])]
        if sum(found) > available:
            return None
        while found != wanted and sum(found) < available:
            narrowest = min((number for number in self._numbers if found[number] < wanted[number]), key=found.__getitem__)
            found[narrowest] += 1
        return found

    def _lines(self) -> Iterator[Text]:
        """The title, and each row as its first cell with the others below it, behind their headers."""
        columns = [self._texts(number) for number in self._numbers]
        (heading, *headers), *rows = zip(*columns, strict=True)
        if isinstance(self.title, Text):
            yield self.title
        if heading:
            yield Text(heading, style="table.header")
        for name, *cells in rows:
            yield Text(name)
            for header, cell in zip(headers, cells, strict=True):
                if cell:
                    yield Text(f"  {header}: {cell}" if header else f"  {cell}")
