"""Rows of a terminal's table that fits: columns are left out of a narrow one, rows of a short one. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from rich.text import Text

_GAP = 1
_LEAST = 8  # characters of a column that takes the rest


@dataclass(frozen=True)
class Column:
    """One column.

    Attributes:
        title: Its head.
        width: Characters; 0 for what the others leave.
        rank: Columns of the highest ranks are left out first.
        cell: Text of a row, given the row and the characters that it may have.
    """

    title: str
    width: int
    rank: int
    cell: Callable[[Any, int], str | Text]


def table(columns: Sequence[Column], rows: Sequence[Any], width: int) -> list[Text]:
    """Returns head and rows, each at most `width` characters; numbers to the right, the last text to the left."""
    shown = sorted(columns, key=lambda column: column.rank)
    while len(shown) > 1 and sum((column.width or _LEAST) + _GAP for column in shown) - _GAP > width:
        shown.pop()
    shown = [column for column in columns if column in shown]
    rest = width - sum(column.width + _GAP for column in shown if column.width)
    sizes = [column.width or rest for column in shown]
    head = _line([column.title for column in shown], shown, sizes)
    head.stylize("bold")
    return [
        head,
        *(_line([c.cell(row, size) for c, size in zip(shown, sizes, strict=True)], shown, sizes) for row in rows),
    ]


def _line(cells: Sequence[str | Text], columns: Sequence[Column], sizes: Sequence[int]) -> Text:
    line = Text()
    for number, (cell, column, size) in enumerate(zip(cells, columns, sizes, strict=True)):
        text = cell.copy() if isinstance(cell, Text) else Text(cell)
        text.truncate(max(size, 0), overflow="ellipsis")
        blanks = " " * max(size - text.cell_len, 0)
        line.append(" " * _GAP if number else "")
        line = line.append(text).append(blanks) if not column.width else line.append(blanks).append(text)
    line.rstrip()
    return line
