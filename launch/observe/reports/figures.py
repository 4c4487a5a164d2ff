"""What a report shows of a run in charts: learning, speed, parts of a step, staleness, events. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from downpour.launch.observe.report import smooth
from downpour.launch.observe.reports import svg
from downpour.launch.observe.reports.html import number
from downpour.launch.observe.reports.recorded import Recorded
from downpour.launch.observe.reports.svg import Line, Point
from downpour.worker.chief.changes import FAULTS

IN_A_STEP, OVERLAPPING = ("input", "compute", "wait"), ("pull", "push")
_SMOOTHING = 0.04  # of all points, the width of the window
_MOST_LINES, _MOST_BARS = svg.COLOURS, 12  # workers in a chart
_BAD = {
    *FAULTS,
    *("worker_lost", "worker_replaced", "worker_input_bound", "shard_silent", "shard_restarted", "checkpoint_failed"),
    "failed",
}
_ROWS = {"worker": "workers", "shard": "shards", "checkpoint": "checkpoints", "chief": "chief", "updates": "shards"}


def smoothed(points: Sequence[Point]) -> list[Point]:
    """Points whose values are means over 4 % of all."""
    values = smooth([y for _, y in points], max(3, round(len(points) * _SMOOTHING)))
    return [(x, y) for (x, _), y in zip(points, values, strict=True)]


def losses(run: Recorded) -> list[Point]:
    """Step and loss, without those that are not finite."""
    return [(one["step"], float(one["loss"])) for one in run.of_kind("loss") if math.isfinite(one["loss"])]


def over_time(run: Recorded, name: str) -> list[Point]:
    """Seconds of training, and a value that the entries on progress have."""
    return [(one["seconds"], float(one[name])) for one in run.of_kind("progress") if _is_number(one.get(name))]


def learning(run: Recorded) -> Iterator[str]:
    """Loss, scores and learning rate."""
    raw, last = losses(run), run.summary.get("loss")
    if raw:
        curve = smoothed(raw)
        value = float(last) if last is not None and _is_number(last) else raw[-1][1]
        both = [Line("", raw, 0, "raw"), Line("loss", curve, 0, "", number(value))]
        note = "Mean over the last seconds of all workers; the strong line is a moving mean."
        yield svg.lines("Training loss", both, "global step", note, logarithmic=True)
    scores = {name: points for name, points in run.scores.items() if not name.startswith("chance")}
    chance = {name: points for name, points in run.scores.items() if name.startswith("chance")}
    for number_of_chart, chosen in enumerate(_alike(scores)):
        drawn = [
            Line(name, scores[name], colour % svg.COLOURS, "dots", number(scores[name][-1][1]))
            for colour, name in enumerate(chosen)
        ]
        if not number_of_chart:
            first = len(drawn)
            drawn += [
                Line(name, points, (first + i) % svg.COLOURS, "", number(points[-1][1]))
                for i, (name, points) in enumerate(chance.items())
            ]
        note = "Of checkpoints, on examples that are not trained on; chance is what guessing scores."
        yield svg.lines("Held-out scores", drawn, "global step", note if chance else note.partition(";")[0] + ".",
                        from_zero=True)  # fmt: skip
    rate = [
        (one["step"], float(one["learning_rate"]))
        for one in run.of_kind("progress")
        if _is_number(one["learning_rate"])
    ]
    drawn = [Line("learning rate", rate, 3, "", number(rate[-1][1]))] if rate else []
    yield svg.lines("Learning rate", drawn, "global step", from_zero=True)


def _alike(scores: Mapping[str, Sequence[Point]]) -> list[list[str]]:
    """Names of scores by chart: those up to 1 together, at most four a chart."""
    fractions = [name for name, points in scores.items() if max(value for _, value in points) <= 1]
    others = [name for name in scores if name not in fractions]
    return [group[i : i + 4] for group in (fractions, others) for i in range(0, len(group), 4)]


def speed(run: Recorded) -> Iterator[str]:
    """Examples a second over time, of all and of every worker."""
    total = over_time(run, "examples_per_second")
    drawn = [Line("all workers", total, 0, "", number(total[-1][1]))] if total else []
    note = "Mean over the last 15 seconds."
    yield svg.lines("Examples a second", drawn, "training time", note, from_zero=True, times=True)
    workers = by_worker(run, "examples_per_second")
    named = sorted(workers, key=lambda worker: sum(y for _, y in workers[worker]) / len(workers[worker]))
    named = sorted(named[:_MOST_LINES], key=_as_number)
    drawn = [
        Line(f"worker {worker}", workers[worker], colour, "", number(workers[worker][-1][1]))
        for colour, worker in enumerate(named)
    ]
    if len(workers) > 1:
        more = f" The {_MOST_LINES} slowest of {len(workers)}." if len(workers) > _MOST_LINES else ""
        title = "Examples a second, by worker"
        yield svg.lines(title, drawn, "training time", note + more, from_zero=True, times=True)


def by_worker(run: Recorded, name: str) -> dict[str, list[Point]]:
    """Seconds of training and a value, by worker, where it is above 0: before and after, a worker does not run."""
    found: dict[str, list[Point]] = {}
    for entry in run.of_kind("progress"):
        for worker, values in dict(entry.get("workers") or {}).items():
            if _is_number(values.get(name)) and values[name] > 0:
                found.setdefault(worker, []).append((entry["seconds"], float(values[name])))
    return found


def step_parts(run: Recorded) -> str:
    """Where the time of a step goes, by worker; the slowest where there are many."""
    rows = {f"worker {worker}": parts for worker, parts in worker_parts(run).items()}
    if not rows and "wait" in (total := run.summary.get("seconds_per_step") or {}):
        rows = {"all workers": total}
    slowest = sorted(rows, key=lambda name: -sum(rows[name][part] for part in IN_A_STEP))[:_MOST_BARS]
    shown = [name for name in rows if name in slowest]
    note = (
        "Mean of the whole run: a step lasts input + compute + wait (for exchanges with shards). "
        "The thin bar is what pulls and pushes took, of which some may overlap the step."
    )
    more = f" The {_MOST_BARS} slowest of {len(rows)} workers." if len(rows) > _MOST_BARS else ""
    bars = [
        (name, {part: rows[name][part] for part in IN_A_STEP}, {part: rows[name][part] for part in OVERLAPPING})
        for name in shown
    ]
    return svg.stacked("Where a step's time went", bars, note + more, (*IN_A_STEP, *OVERLAPPING))


def worker_parts(run: Recorded) -> dict[int, dict[str, float]]:
    """Mean seconds of each worker's steps, by part."""
    return {
        worker: {part: totals[f"{part}_seconds"] / totals["steps"] for part in (*IN_A_STEP, *OVERLAPPING)}
        for worker, totals in run.workers.items()
    }


def staleness(run: Recorded) -> Iterator[str]:
    """Staleness over time, and its histogram."""
    points = over_time(run, "staleness_mean")
    drawn = [Line("mean", points, 0, "", number(points[-1][1]))] if points else []
    note = "Mean over the last 15 seconds: updates applied between a worker's pull and its push."
    yield svg.lines("Staleness over time", drawn, "training time", note, from_zero=True, times=True)
    counts = staleness_counts(run)
    yield svg.bars("Pushes by staleness", counts, "staleness", "Share of all pushes, over all shards.")


def staleness_counts(run: Recorded) -> dict[int, int]:
    """Pushes by staleness, of the whole run or as far as it is known."""
    found: dict[int, int] = {}
    known = [run.summary["staleness_histogram"]] if run.summary.get("staleness_histogram") else [
        one.get("staleness") for one in run.of_kind("progress")
    ]  # fmt: skip
    for counts in known:
        for value, count in dict(counts or {}).items():
            found[int(value)] = found.get(int(value), 0) + int(count)
    return found


def events(run: Recorded) -> list[tuple[Mapping[str, Any], bool]]:
    """Events in their order, and whether each is a fault; a chief that goes on with the run is one, too."""
    found, num_chiefs = list[Mapping[str, Any]](), 0
    for one in run.entries:  # as they were written; their clock may have been set meanwhile
        if one["kind"] == "event":
            found.append(one)
        elif one["kind"] == "environment":
            num_chiefs += 1
            if num_chiefs > 1:
                text = f"a chief went on with the run at step {one['step']:,}"
                found.append({**one, "event": "chief_restarted", "text": text})
    return [(one, one.get("event") in _BAD) for one in found]


def timeline(run: Recorded) -> str:
    """Events over the time of training."""
    rows: dict[str, list[tuple[float, str, bool]]] = {
        name: [] for name in ("chief", "workers", "shards", "checkpoints")
    }
    for one, is_fault in events(run):
        name = _ROWS.get(str(one.get("event", "")).partition("_")[0], "job")
        rows.setdefault(name, []).append((float(one["seconds"]), str(one.get("text", "")), is_fault))
    note = "A circle for each event, a diamond for a fault; the table below has them in words."
    return svg.timeline("What happened when", rows, run.seconds, note)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _as_number(worker: str) -> tuple[int, str]:
    return (int(worker), "") if worker.isdecimal() else (1 << 30, worker)
