"""Runs side by side: what differs in job and versions, and how they did; as text. Pure, but for the folders' paths.

Runs whose jobs have the same fields, all but `seed`, share a column, which has the mean of a figure and its range.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from downpour.launch.observe.reports.figures import IN_A_STEP, OVERLAPPING, events, worker_parts
from downpour.launch.observe.reports.html import number, seconds, size
from downpour.launch.observe.reports.recorded import GOES_ON, Recorded
from downpour.launch.observe.reports.tables import examples_per_second, machine_words, staleness_mean, versions
from downpour.launch.observe.status_text import duration

_SEED = "seed"
_LONGEST = 44  # characters of a cell, as text
_MB = 1e6

Figure = tuple[float, Callable[[float], str]]  # and how it is written


@dataclass(frozen=True)
class Column:
    """One run, or several of one job with different seeds.

    Attributes:
        name: Of the folder, or of the folders.
        runs: The runs.
    """

    name: str
    runs: tuple[Recorded, ...]


@dataclass(frozen=True)
class Row:
    """A name, and a cell for each column."""

    name: str
    cells: tuple[str, ...]


@dataclass(frozen=True)
class Comparison:
    """Runs side by side.

    Attributes:
        columns: Of the rows.
        figures: How the runs did; with two columns each has a third cell, the change.
        fields: Fields of the job that differ.
        versions: Versions and machines that differ.
        unknown: Names of the runs whose job is not known.
        unversioned: Names of the runs whose versions are not known.
    """

    columns: tuple[Column, ...]
    figures: tuple[Row, ...]
    fields: tuple[Row, ...]
    versions: tuple[Row, ...]
    unknown: tuple[str, ...] = ()
    unversioned: tuple[str, ...] = ()

    @property
    def head(self) -> list[str]:
        """Names of the columns of `figures`."""
        return [*(column.name for column in self.columns), *(["change"] if len(self.columns) == 2 else [])]


def different(folders: Sequence[Path]) -> Sequence[Path]:
    """The folders, if they are two or more and all different.

    Raises:
        ValueError: They are not.
    """
    if len(folders) < 2:
        raise ValueError(f"{len(folders)} runs to compare; give two or more: downpour compare runs/a runs/b")
    seen: dict[Path, Path] = {}
    for folder in folders:
        if folder.resolve() in seen:
            raise ValueError(f"{folder} is given twice; give every run once")
        seen[folder.resolve()] = folder
    return folders


def compare(runs: Sequence[Recorded]) -> Comparison:
    """Compares runs, in the order given."""
    columns, names = _columns(runs), _names(runs)
    return Comparison(
        columns,
        tuple(_figures(columns)),
        tuple(_differing(columns, [run.job for run in runs], lambda run: run.job)),
        tuple(_differing(columns, [_surroundings(run) for run in runs], _surroundings)),
        tuple(name for run, name in zip(runs, names, strict=True) if not run.job),
        tuple(name for run, name in zip(runs, names, strict=True) if not run.environments),
    )


def text(found: Comparison) -> str:
    """The comparison as a table for a terminal."""
    lines = _aligned([("", *found.head), *((row.name, *row.cells) for row in found.figures)])
    names = [column.name for column in found.columns]
    for heading, rows, none in (
        ("fields of the job that differ", found.fields, same_fields_words(found)),
        ("versions and machines that differ", found.versions, same_versions_words(found)),
    ):
        if rows:
            lines += ["", *_aligned([(heading, *names), *((row.name, *row.cells) for row in rows)])]
        lines += [f"{'' if rows else chr(10)}{words}" for words in none]
    return "\n".join(lines)


def same_fields_words(found: Comparison) -> list[str]:
    """What is to be said of the fields of the job besides those that differ."""
    same = [] if found.fields else ["All fields of the job that are known are the same."]
    why = "there is no readable journal"
    return same + ([f"The job of {', '.join(found.unknown)} is not known: {why}."] if found.unknown else [])


def same_versions_words(found: Comparison) -> list[str]:
    """What is to be said of versions and machines besides those that differ."""
    same = [] if found.versions else ["Versions, machine and overrides are the same, as far as they are known."]
    why = "an earlier version of Downpour did not record them"
    return same + ([f"Versions of {', '.join(found.unversioned)} are not known: {why}."] if found.unversioned else [])


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    cut = [[cell if len(cell) <= _LONGEST else f"{cell[: _LONGEST - 3]}..." for cell in row] for row in rows]
    widths = [max(len(row[i]) for row in cut) for i in range(len(cut[0]))]
    return ["  ".join(map(str.ljust, row, widths)).rstrip() for row in cut]


def _columns(runs: Sequence[Recorded]) -> tuple[Column, ...]:
    """One column a run, or a group of runs of one job whose seeds are all different."""
    names, groups = _names(runs), dict[object, list[int]]()
    for index, run in enumerate(runs):
        job = tuple(sorted((name, value) for name, value in run.job.items() if name != _SEED))
        groups.setdefault(job or index, []).append(index)
    found = []
    for members in groups.values():
        seeds = [runs[index].job.get(_SEED, "") for index in members]
        if len(members) > 1 and len(set(seeds)) == len(members):
            name = f"{', '.join(names[index] for index in members)} (seeds {', '.join(seeds)})"
            found.append((members[0], Column(name, tuple(runs[index] for index in members))))
        else:
            found += [(index, Column(names[index], (runs[index],))) for index in members]
    return tuple(column for _, column in sorted(found, key=lambda pair: pair[0]))


def _names(runs: Sequence[Recorded]) -> list[str]:
    """Names of the folders, or their paths if these are not different."""
    short = [run.folder.resolve().name for run in runs]
    return short if len(set(short)) == len(short) else [str(run.folder) for run in runs]


def _figures(columns: Sequence[Column]) -> Iterator[Row]:
    endings = tuple("; ".join(dict.fromkeys(_ending(run) for run in column.runs)) for column in columns)
    yield Row("how it ended", (*endings, *([""] if len(columns) == 2 else [])))
    known = [[measured(run) for run in column.runs] for column in columns]
    for name in dict.fromkeys(name for runs in known for figures in runs for name in figures):
        cells, means = list[str](), list[float | None]()
        for runs in known:
            values = [figures[name] for figures in runs if name in figures]
            cells.append(_cell(values))
            means.append(statistics.fmean(value for value, _ in values) if values else None)
        if len(columns) == 2:
            cells.append(_change(*means))
        yield Row(name, tuple(cells))


def _cell(values: Sequence[Figure]) -> str:
    """A value, or mean and range: `0.531 (0.522 to 0.54, 3 runs)`."""
    if not values:
        return "unknown"
    numbers, words = [value for value, _ in values], values[0][1]
    if len(values) == 1:
        return words(numbers[0])
    return f"{words(statistics.fmean(numbers))} ({words(min(numbers))} to {words(max(numbers))}, {len(values)} runs)"


def _change(before: float | None, after: float | None) -> str:
    if before is None or after is None or not before:
        return ""
    return "same" if before == after else f"{100 * (after - before) / abs(before):+.1f} %"


def _ending(run: Recorded) -> str:
    words = {"stopped": "stopped or killed", GOES_ON: "goes on", "failed": "failed"}
    total = run.status.get("num_steps") or 0
    if run.state == "done":
        return "all steps" if run.status.get("ended_by", "steps") == "steps" else f"by {run.status['ended_by']}"
    return f"{words.get(run.state, run.state)} at step {run.step:,}{f' of {total:,}' if total else ''}"


def measured(run: Recorded) -> dict[str, Figure]:
    """The figures of a run that are known, by name, each with how it is written."""
    found: dict[str, Figure] = {
        "steps": (run.step, lambda value: f"{value:,.0f}"),
        "training time": (run.seconds, duration),
    }
    if run.status.get("loss") is not None:
        found["loss"] = float(run.status["loss"]), number
    for name, points in run.scores.items():
        if not name.startswith("chance"):
            found[name] = points[-1][1], number
    for name, value in (("examples a second", examples_per_second(run)), ("staleness, mean", staleness_mean(run))):
        if value is not None:
            found[name] = value, number
    parts = mean_parts(run)
    if parts:
        found["a step"] = sum(parts[part] for part in IN_A_STEP), seconds
        found |= {f"- {part}": (parts[part], seconds) for part in (*IN_A_STEP, *OVERLAPPING)}
    if run.summary.get("bytes_per_step"):
        found["bytes a step"] = float(run.summary["bytes_per_step"]), size
    found["faults among the events"] = sum(is_fault for _, is_fault in events(run)), number
    for name, count in dict(run.status.get("faults") or {}).items():
        found[name.replace("_", " ")] = float(count), number
    for role, memory in dict(run.summary.get("peak_pss_mb") or {}).items():
        found[f"peak memory, {'shard' if role == 'ps' else role}"] = _MB * float(memory), size
    for role, spent in dict(run.summary.get("processor_seconds") or {}).items():
        found[f"processor seconds, {'shards' if role == 'ps' else role}"] = float(spent), number
    return found


def mean_parts(run: Recorded) -> dict[str, float]:
    """Mean seconds of a step of all workers, by part; empty if they are not known."""
    steps = sum(totals["steps"] for totals in run.workers.values())
    if not steps:
        total = run.summary.get("seconds_per_step") or {}
        return dict(total) if "wait" in total else {}
    parts = worker_parts(run)
    return {
        part: sum(parts[worker][part] * totals["steps"] for worker, totals in run.workers.items()) / steps
        for part in (*IN_A_STEP, *OVERLAPPING)
    }


def _surroundings(run: Recorded) -> dict[str, str]:
    """Versions, overrides and machine, as text by name; empty if they are not known."""
    if not run.environments:
        return {}
    last = run.environments[-1]
    overrides = ", ".join(map(str, last.get("overrides", ()))) or "none"
    return {**versions(run), "chief's machine": machine_words(dict(last.get("machine") or {})), "overrides": overrides}


def _differing(
    columns: Sequence[Column], known: Sequence[Mapping[str, str]], of: Callable[[Recorded], Mapping[str, str]]
) -> Iterator[Row]:
    """Names whose values are not the same in all runs of which any are known."""
    some = [values for values in known if values]
    for name in dict.fromkeys(name for values in some for name in values):
        if len({values.get(name) for values in some}) > 1:
            cells = (dict.fromkeys(_value(of(run), name) for run in column.runs) for column in columns)
            yield Row(name, tuple(", ".join(values) for values in cells))


def _value(values: Mapping[str, str], name: str) -> str:
    return values.get(name, "none") if values else "unknown"
