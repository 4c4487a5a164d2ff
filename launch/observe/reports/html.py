"""HTML of a page that is one file: its frame, sections and tables. No scripts, nothing from elsewhere. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from html import escape

from downpour.launch.observe.reports.style import style

MOST_ROWS = 40  # of a table

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark"><title>{title}</title><style>{style}</style></head><body>
<header><h1>{title}</h1>{lead}</header>
<nav aria-label="Sections"><ul>{links}</ul></nav>
<main>{sections}</main>
<footer><p>{foot}</p></footer></body></html>
"""


def page(title: str, lead: str, sections: Sequence[tuple[str, str]], foot: str) -> str:
    """A whole page.

    Args:
        title: Of the page, as text.
        lead: HTML below the title.
        sections: Heading, as text, and HTML of each; those without HTML are left out.
        foot: Text at the end.
    """
    shown = [(heading, f"s{number}", body) for number, (heading, body) in enumerate(sections) if body]
    return _PAGE.format(
        title=escape(title),
        style=style(),
        lead=lead,
        links="".join(f'<li><a href="#{name}">{escape(heading)}</a></li>' for heading, name, _ in shown),
        sections="".join(
            f'<section aria-labelledby="{name}"><h2 id="{name}">{escape(heading)}</h2>{body}</section>'
            for heading, name, body in shown
        ),
        foot=escape(foot),
    )


def paragraph(text: str, kind: str = "") -> str:
    """A paragraph of plain text; nothing for an empty one."""
    return f"<p{_class(kind)}>{escape(text)}</p>" if text else ""


def listed(texts: Sequence[str]) -> str:
    """A list of what is to be noticed; nothing without one."""
    items = "".join(f"<li>{escape(text)}</li>" for text in texts)
    return f'<ul class="noticed">{items}</ul>' if items else ""


def tiles(values: Iterable[tuple[str, str, str]]) -> str:
    """Large figures: name, value and, where it helps, a remark."""
    one = "<div><dt>{}</dt><dd>{}{}</dd></div>"
    found = "".join(
        one.format(escape(name).replace("_", "_<wbr>"), escape(value), f"<small>{escape(more)}</small>" if more else "")
        for name, value, more in values
    )
    return f'<dl class="tiles">{found}</dl>'


def facts(rows: Iterable[tuple[str, str]]) -> str:
    """A table of names and values; rows without a value are left out."""
    return table([], [row for row in rows if row[1]], "facts")


def table(head: Sequence[str], rows: Sequence[Sequence[str]], kind: str = "", more: str = "") -> str:
    """A table whose first column names the rows; of more than 40 rows the first are shown.

    Args:
        head: Names of the columns; none for no heading.
        rows: Texts of the cells.
        kind: `facts`, `numbers` (aligned to the right), or "".
        more: Where further rows are found.
    """
    if not rows:
        return ""
    columns = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in head)
    top = f"<thead><tr>{columns}</tr></thead>" if head else ""
    body = "".join(
        f'<tr><th scope="row">{escape(first)}</th>' + "".join(f"<td>{escape(cell)}</td>" for cell in rest) + "</tr>"
        for first, *rest in rows[:MOST_ROWS]
    )
    left = len(rows) - MOST_ROWS
    name = escape(", ".join(head) or "facts")
    return (
        f'<div class="scroll" role="region" tabindex="0" aria-label="Table: {name}"><table{_class(kind)}>{top}'
        f"<tbody>{body}</tbody></table></div>"
        + (paragraph(f"and {left:,} more; {more}".removesuffix("; "), "soft") if left > 0 else "")
    )


def table_of_all(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Tables of at most 40 rows each that together have all rows."""
    return "".join(table(head, rows[i : i + MOST_ROWS]) for i in range(0, len(rows), MOST_ROWS))


def folded(summary: str, body: str) -> str:
    """A part that is unfolded on request, without a script; nothing if it is empty."""
    return f"<details><summary>{escape(summary)}</summary>{body}</details>" if body else ""


def charts(figures: Iterable[str]) -> str:
    """Charts beside each other where there is room; empty ones are left out."""
    found = [one for one in figures if one]
    return f'<div class="charts">{"".join(found)}</div>' if found else ""


def number(value: float | None) -> str:
    """A number to four digits: `0.5312`, `12.5`, `1,234`, `80,000,000`."""
    if value is None or not math.isfinite(value):
        return "not a number" if value is not None else "unknown"
    if value == int(value) or abs(value) >= 1000:
        return f"{value:,.0f}" if abs(value) < 1e15 else f"{value:.3g}"
    return f"{value:.4g}"


def size(num_bytes: float) -> str:
    """A number of bytes: `324 bytes`, `12.5 KB`, `245 MB`; in powers of 1,000."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("KB", 1e3)):
        if num_bytes >= factor:
            return (
                f"{num_bytes / factor:.3g} {unit}"
                if num_bytes < 999.5 * factor
                else f"{num_bytes / factor:,.0f} {unit}"
            )
    return f"{num_bytes:.0f} bytes"


def seconds(value: float) -> str:
    """Seconds of a part of a step: `0.31 ms`, `12.5 ms`, `1.25 s`."""
    return f"{value:.3g} s" if value >= 1 else f"{1000 * value:.3g} ms"


def _class(kind: str) -> str:
    return f' class="{kind}"' if kind else ""
