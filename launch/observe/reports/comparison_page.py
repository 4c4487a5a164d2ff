"""A comparison of runs as a page: what differs, how they did, and their curves over each other. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime

from downpour import __version__
from downpour.launch.observe.reports import html, svg
from downpour.launch.observe.reports.comparison import (
    Comparison,
    Row,
    mean_parts,
    same_fields_words,
    same_versions_words,
)
from downpour.launch.observe.reports.figures import (
    IN_A_STEP,
    OVERLAPPING,
    losses,
    over_time,
    smoothed,
    staleness_counts,
)
from downpour.launch.observe.reports.recorded import Recorded
from downpour.launch.observe.reports.run import ended
from downpour.launch.observe.reports.svg import Line, Point

_MOST_OPEN = 12  # rows of a table that is not folded


def page(found: Comparison) -> str:
    """The HTML of a comparison."""
    runs = [run for column in found.columns for run in column.runs]
    sections = [
        ("How they did", html.table(["figure", *found.head], _cells(found.figures))),
        ("What differs in the job", _differing(found, "field", found.fields, same_fields_words(found))),
        ("What else differs", _differing(found, "what", found.versions, same_versions_words(found))),
        ("Curves", html.charts(_curves(found))),
        ("How each ended", html.table(["run", "end"], [[str(run.folder), ended(run)] for run in runs])),
    ]
    lead = html.paragraph(
        "Runs of one job with different seeds share a column: the mean, and in brackets the range."
        if any(len(column.runs) > 1 for column in found.columns)
        else ""
    )
    made = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    return html.page(f"{len(runs)} runs compared", lead, sections, f"Made by Downpour {__version__} on {made}.")


def _differing(found: Comparison, name: str, rows: Sequence[Row], words: Sequence[str]) -> str:
    """A table of what differs, folded where it is long, and what else is to be said."""
    head = [name, *(column.name for column in found.columns)]
    table = html.table_of_all(head, _cells(rows))
    shown = html.folded(f"{len(rows)} differ", table) if len(rows) > _MOST_OPEN else table
    return shown + "".join(html.paragraph(one) for one in words)


def _cells(rows: Sequence[Row]) -> list[list[str]]:
    return [[row.name, *row.cells] for row in rows]


def _curves(found: Comparison) -> Iterator[str]:
    def drawn(points_of: Callable[[Recorded], Sequence[Point]], kind: str = "") -> list[Line]:
        return [
            Line("" if number else column.name, points_of(run), index % svg.COLOURS, kind)
            for index, column in enumerate(found.columns)
            for number, run in enumerate(column.runs)
        ]

    yield svg.lines("Training loss", drawn(lambda run: smoothed(losses(run))), "global step", "Moving means.",
                    logarithmic=True)  # fmt: skip
    names = dict.fromkeys(name for column in found.columns for run in column.runs for name in run.scores)
    for name in names:
        if not name.startswith("chance"):
            lines = drawn(lambda run, name=name: run.scores.get(name, ()), "dots")  # type: ignore[misc]
            yield svg.lines(name, lines, "global step", "Held-out score of checkpoints.", from_zero=True)
    for title, entry in (("Examples a second", "examples_per_second"), ("Staleness", "staleness_mean")):
        lines = drawn(lambda run, entry=entry: over_time(run, entry))  # type: ignore[misc]
        note = "Means over the last 15 seconds."
        yield svg.lines(title, lines, "training time", note, from_zero=True, times=True)
    rows = []
    for column in found.columns:
        known = [parts for run in column.runs if (parts := mean_parts(run))]
        if known:
            mean = {part: sum(parts[part] for parts in known) / len(known) for part in (*IN_A_STEP, *OVERLAPPING)}
            rows.append(
                (column.name, {part: mean[part] for part in IN_A_STEP}, {part: mean[part] for part in OVERLAPPING})
            )
    note = "A step lasts input + compute + wait; pulls and pushes, the thin bar, may overlap it."
    yield svg.stacked("Where a step's time went", rows, note, (*IN_A_STEP, *OVERLAPPING))
    for column in found.columns:
        counts: dict[int, int] = {}
        for run in column.runs:
            for value, count in staleness_counts(run).items():
                counts[value] = counts.get(value, 0) + count
        yield svg.bars(f"Pushes by staleness: {column.name}", counts, "staleness", "Share of all pushes.")
