"""Tables of figures with their bars, for a page and for a terminal alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Cell:
    """A figure as text, and whether it reached its bar (None: there is none)."""

    text: str
    passed: bool | None = None


@dataclass(frozen=True, kw_only=True)
class Row:
    """One figure, or several of one kind: the bar as text (empty: none), and what belongs beside it."""

    name: str
    cells: tuple[Cell, ...]
    bar: str = ""
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Table:
    """A headed list of rows; `columns` names the cells of every row."""

    title: str
    lead: str
    columns: tuple[str, ...]
    rows: Sequence[Row]


def plain(*texts: str) -> tuple[Cell, ...]:
    """Cells without a bar."""
    return tuple(Cell(text) for text in texts)


def text_lines(table: Table) -> list[str]:
    """A table for a terminal: columns lined up, numbers to the right, missed bars as words."""
    lines = [["", *table.columns], *([row.name, *(_marked(cell, row.bar) for cell in row.cells)] for row in table.rows)]
    widths = [max(len(line[column]) for line in lines if column < len(line)) for column in range(len(lines[0]))]
    shown = []
    for name, *cells in lines:
        padded = [name.ljust(widths[0]), *(text.rjust(width) for text, width in zip(cells, widths[1:], strict=False))]
        shown.append("  ".join(padded).rstrip())
    return [table.title, *shown, ""]


def _marked(cell: Cell, bar: str) -> str:
    return f"{cell.text} (bar {bar})" if cell.passed is False else cell.text
