"""The report of one run: `report.html` in its folder, one file that needs nothing else to be read."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from downpour import __version__, files
from downpour.launch.observe.reports import figures, html, tables
from downpour.launch.observe.reports.html import number
from downpour.launch.observe.reports.noticed import extremes, noticed
from downpour.launch.observe.reports.recorded import GOES_ON, Recorded, read
from downpour.launch.observe.status_text import duration

FILE = "report.html"
_FIRST_SCORES = 2  # above the sections
_SET_BACK = "Events are in the order in which they happened; the chief's clock was set back during the run."


def write_report(run_dir: Path, out: Path | None = None) -> Path:
    """Writes the report of a run; returns its path.

    Args:
        run_dir: Folder of the run.
        out: The file; None for `report.html` in that folder.

    Raises:
        ValueError: The folder holds no run, or one of which nothing can be shown yet, or the file cannot be written.
    """
    return write_page(page(read(run_dir)), out or run_dir / FILE)


def write_page(text: str, path: Path) -> Path:
    """Writes a page.

    Raises:
        ValueError: The file cannot be written.
    """
    try:
        files.write(path, text)
    except OSError as error:
        raise ValueError(f"cannot write {path}: {error.strerror}; give another file") from None
    return path


def page(run: Recorded) -> str:
    """The HTML of a run's report."""
    sections = [
        ("What ran", _what_ran(run)),
        ("Learning", html.charts(figures.learning(run))),
        ("Speed", _speed(run)),
        ("Staleness", _staleness(run)),
        ("Faults and recoveries", _faults(run)),
        ("Cost by role", _cost(run)),
        ("Checkpoints", _checkpoints(run)),
    ]
    lead = html.paragraph(ended(run), "bad" if run.state in ("failed", "stopped") else "")
    lead += html.listed(noticed(run))
    made = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    foot = f"Made by Downpour {__version__} on {made} from the folder {run.folder.name}."
    if run.num_unreadable:
        foot += f" {run.num_unreadable:,} lines of its history could not be read and are left out."
    return html.page(f"{run.name}: report of a run", lead + html.tiles(_tiles(run)), sections, foot)


def ended(run: Recorded) -> str:
    """How the run ended, or up to where it is known, as a sentence."""
    total = f" of {run.status['num_steps']:,}" if run.status.get("num_steps") else ""
    where = f"step {run.step:,}{total}, after {duration(run.seconds)} of training"
    if run.state == "done":
        why, because = run.status.get("ended_by", "steps"), run.status.get("ended_because")
        reason = {"steps": "with its last step"}.get(why, f"by {why}{f': {because}' if because else ''}")
        return f"The run ended by itself at {where}, {reason}."
    last = f"; the last line of its history is of {run.written:%Y-%m-%d %H:%M:%S UTC}" if run.written else ""
    if run.state == GOES_ON:
        return f"The run goes on; this is what was recorded up to {where}{last}."
    if run.state == "failed":
        return f"The run failed at {where}: {str(run.status.get('failure', 'for an unknown reason')).rstrip('.')}."
    whole = max((one.step for one in run.checkpoints if one.is_whole), default=None)
    then = f"--resume continues from step {whole:,}" if whole is not None else "no whole checkpoint is left"
    return f"The run did not end by itself: it was stopped or killed. It is known up to {where}{last}; {then}."


def _tiles(run: Recorded) -> Iterator[tuple[str, str, str]]:
    total = run.status.get("num_steps")
    yield "Steps", f"{run.step:,}", f"of {total:,}" if total else ""
    yield "Training time", duration(run.seconds), ""
    if run.status.get("loss") is not None:
        yield "Loss", number(run.status["loss"]), ""
    named = [name for name in run.scores if not name.startswith("chance")]
    for name in named[:_FIRST_SCORES]:
        step, value = run.scores[name][-1]
        yield name, number(value), f"at step {step:,.0f}"
    if rate := tables.examples_per_second(run):
        yield "Examples a second", number(rate), ""
    if (mean := tables.staleness_mean(run)) is not None:
        yield "Staleness, mean", number(mean), ""
    bad = sum(is_fault for _, is_fault in figures.events(run))
    yield "Faults", str(bad) if bad else "none", "events below" if bad else ""


def _what_ran(run: Recorded) -> str:
    facts = html.facts(tables.what_ran(run))
    fields = [[name, value] for name, value in run.job.items()]
    shards = tables.shards(run)
    return (
        facts
        + html.folded(f"All {len(fields)} fields of the job", html.table_of_all(["field", "value"], fields))
        + html.folded(f"The {len(shards.rows)} shards", html.table(shards.head, shards.rows, "numbers", shards.more))
    )


def _speed(run: Recorded) -> str:
    rows = tables.workers(run)
    return (
        html.charts([*figures.speed(run), figures.step_parts(run)])
        + "".join(html.paragraph(text) for text in extremes(run))
        + html.table(rows.head, rows.rows, "numbers", rows.more)
    )


def _staleness(run: Recorded) -> str:
    causes = run.summary.get("staleness_by_cause") or {}
    words = {
        "own_push": "the worker's own push in flight",
        "others_before_step": "pushes of others before the step began",
        "others_during_step": "pushes of others during the step",
    }
    named = "; ".join(f"{words.get(name, name)} {number(value)}" for name, value in causes.items())
    return html.charts(figures.staleness(run)) + html.paragraph(f"Mean by cause: {named}." if named else "", "soft")


def _faults(run: Recorded) -> str:
    found = figures.events(run)
    counts = tables.faults(run)
    words = ""
    if not counts and not any(is_fault for _, is_fault in found):
        what = "No process died or fell silent, no update was lost, no push refused or dropped, no record skipped."
        words = what if found else "Nothing is recorded of faults."
    rows = [[_at(one), f"{one['step']:,}", f"{'Fault: ' if bad else ''}{one.get('text', '')}"] for one, bad in found]
    times = [float(one.get("time") or 0) for one, _ in found]
    was_set_back = any(later < sooner for sooner, later in itertools.pairwise(times))
    listed = html.table_of_all(["time", "step", "what"], rows)
    return (
        html.paragraph(words)
        + html.table(["what", "how many", "meaning"], counts)
        + html.charts([figures.timeline(run)])
        + (html.paragraph(_SET_BACK, "soft") if was_set_back else "")
        + (html.folded(f"All {len(rows)} events", listed) if len(rows) > 12 else listed)
    )


def _at(event: Mapping[str, Any]) -> str:
    """Wall-clock time of an event."""
    return datetime.fromtimestamp(float(event.get("time") or 0), UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def _cost(run: Recorded) -> str:
    rows, facts = tables.cost(run), html.facts(tables.bytes_moved(run))
    note = "" if run.summary.get("processor_seconds") else tables.NO_COST
    head = ["role", "processes", "processor seconds", "peak memory (PSS)", "peak memory (RSS)"]
    return html.table(head, rows, "numbers") + html.paragraph(note, "soft") + facts


def _checkpoints(run: Recorded) -> str:
    rows = [
        [f"step {one.step:,}", "yes" if one.is_whole else "no", one.words,
         html.size(one.size_bytes) if one.size_bytes is not None else "unknown"]
        for one in run.checkpoints
    ]  # fmt: skip
    if not rows:
        return html.paragraph("No checkpoint of the run was found.")
    return html.table(["checkpoint", "whole", "what was found", "size"], rows)
