"""Plots a run: loss and held-out score over steps, from `history.jsonl`.

The chief appends one JSON object per line: `{"kind": "loss", "step", "seconds", "loss"}` and `{"kind": "score", "step",
"seconds", "map_at_100", "map_at_100_unweighted"}`. matplotlib is imported only here, and only to draw.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from downpour.launch.job import Job

from downpour import files, how_to_install

HISTORY_FILE, SUMMARY_FILE, CURVE_FILE = "history.jsonl", "summary.json", "learning_curve.png"

_INK, _FAINT, _LOSS, _SCORE, _SCORE_2 = "#1f2933", "#d9e2ec", "#3b6fb6", "#d1495b", "#edae49"
_DASHES = (0, (4, 3))
# Score, that of guessing, label, colour.
_AVERAGE_PRECISION: tuple[tuple[str, str, str, str], ...] = (
    ("map_at_100", "chance_weighted", "classes weighted", _SCORE),
    ("map_at_100_unweighted", "chance", "unweighted", _SCORE_2),
)
_NO_SCORES = ("kind", "step", "seconds")
_SMOOTHING_FRACTION = 0.04  # of all points, the width of the window


def learning_curve(run_dir: Path) -> Path:
    """Draws `learning_curve.png` into the run's folder.

    Raises:
        ValueError: matplotlib is not installed, or there is nothing to draw.
    """
    losses, scores = read_history(run_dir)
    if not losses and not scores:
        raise ValueError(f"{run_dir / HISTORY_FILE} has neither a loss nor a score; there is nothing to draw yet")
    summary_path = run_dir / SUMMARY_FILE
    summary = json.loads(summary_path.read_text()) if summary_path.exists() else {}
    path = run_dir / CURVE_FILE
    _draw(losses, scores, summary, path)
    return path


def read_history(run_dir: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Reads losses and scores in the order of their steps; see `read_entries`."""
    rows = sorted(read_entries(run_dir)[0], key=lambda row: int(row["step"]))
    return [row for row in rows if row["kind"] == "loss"], [row for row in rows if row["kind"] == "score"]


def read_entries(run_dir: Path) -> tuple[list[dict[str, Any]], int]:
    """Reads the history of a run: its entries as they were written, and how many lines are none.

    A line that is cut off, or lacks kind, step, seconds or its loss, is left out and counted.

    Raises:
        ValueError: There is no history.
    """
    path = run_dir / HISTORY_FILE
    if not path.exists():
        raise ValueError(f"no {path}; give the folder of a run that has trained")
    lines = [line for line in path.read_text(errors="replace").splitlines() if line.strip()]
    found = [entry for line in lines if (entry := _entry(line)) is not None]
    return found, len(lines) - len(found)


def _entry(line: str) -> dict[str, Any] | None:
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(entry, dict) or not isinstance(entry.get("kind"), str):
        return None
    numbers = ["step", "seconds", *(["loss"] if entry["kind"] == "loss" else [])]
    known = all(isinstance(entry.get(name), int | float) for name in numbers)
    return entry if known and math.isfinite(entry["step"]) and math.isfinite(entry["seconds"]) else None


def smooth(values: Sequence[float], width: int) -> list[float]:
    """The mean over a centred window of `width` values, truncated at either end."""
    half = width // 2
    sums = [0.0]
    for value in values:
        sums.append(sums[-1] + value)
    windows = [(max(0, i - half), min(len(values), i + half + 1)) for i in range(len(values))]
    return [(sums[stop] - sums[start]) / (stop - start) for start, stop in windows]


def step_words(seconds: Mapping[str, float]) -> str:
    """Seconds of a worker's step, and of its parts: `0.130 (input 0.001, compute 0.120, wait 0.009: pull ...)`."""
    if "wait" not in seconds:  # of a run by an earlier version, in which all parts follow each other
        return f"{sum(seconds.values()):.3f} ({_parts(seconds, seconds)})"
    total = sum(seconds[part] for part in ("input", "compute", "wait"))
    return (
        f"{total:.3f} ({_parts(seconds, ('input', 'compute'))}, waiting {seconds['wait']:.3f} for an exchange of "
        f"{_parts(seconds, ('push', 'pull'))})"
    )


def _parts(seconds: Mapping[str, float], names: Iterable[str]) -> str:
    return ", ".join(f"{name} {seconds[name]:.3f}" for name in names)


def cost_table(summary: Mapping[str, Any]) -> str:
    """Table of the costs of a step and a process; rows that the summary has no numbers for are left out."""
    rows = []
    seconds = summary.get("seconds_per_step")
    if seconds:
        rows.append(("seconds a step in one worker", step_words(seconds)))
    if summary.get("bytes_per_step"):
        rows.append(("MB moved a step", f"{summary['bytes_per_step'] / 1e6:.1f}"))
    for key, name in (("peak_pss_mb", "peak memory (PSS), MB"), ("peak_rss_mb", "peak memory (RSS), MB")):
        if summary.get(key):
            rows.append((name, ", ".join(f"{role} {size:.0f}" for role, size in summary[key].items())))
    return "\n".join(f"{name:<30} {value}" for name, value in rows)


def early_end(summary: Mapping[str, Any], job: Job) -> str:
    """Why training ended before its steps and how to continue, as one line; "" after all steps."""
    if summary.get("ended_by", "steps") == "steps":
        return ""
    if because := summary.get("ended_because"):
        return f"ended by {summary['ended_by']} at step {summary['global_steps']} of {job.num_steps}: {because}"
    why = {"max_train_s": f"after max_train_s, {job.max_train_s:g} s of training,"}.get(summary["ended_by"], "early")
    return f"ended {why} at step {summary['global_steps']} of {job.num_steps}; the same command with --resume trains on"


def title(summary: Mapping[str, Any]) -> str:
    """Title such as `quickstart: 17 shards, 2 workers, head in 50 slices`."""
    parts = [
        f"{summary[key]:,} {noun}" if key != "head_slices" else f"head in {summary[key]} slices"
        for key, noun in (("num_ps", "shards"), ("num_workers", "workers"), ("head_slices", ""))
        if summary.get(key)
    ]
    return (
        f"{summary.get('recipe', 'run')}: {', '.join(parts)}" if parts else str(summary.get("recipe", "Learning curve"))
    )


def _draw(losses: list[dict[str, Any]], scores: list[dict[str, Any]], summary: Mapping[str, Any], path: Path) -> None:
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise ValueError(f"no learning curve: matplotlib is not installed; {how_to_install('quickstart')}") from None
    figure = Figure(figsize=(10, 4), dpi=160, layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    figure.suptitle(title(summary), color=_INK, fontsize=13, fontweight="bold", x=0.012, ha="left")
    engine: Any = figure.get_layout_engine()
    engine.set(w_pad=0.15, h_pad=0.08, wspace=0.06)
    _draw_losses(left, losses)
    _draw_scores(right, scores, summary)
    for axes in (left, right):
        _style(axes, last_step=max(row["step"] for row in losses + scores))
    with files.replacing(path) as temporary:
        figure.savefig(temporary, format=path.suffix[1:])


def _draw_losses(axes: Any, losses: list[dict[str, Any]]) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator

    steps, values = [row["step"] for row in losses], [float(row["loss"]) for row in losses]
    smoothed = smooth(values, max(3, round(len(values) * _SMOOTHING_FRACTION)))
    axes.plot(steps, values, color=_LOSS, alpha=0.25, linewidth=0.9)
    axes.plot(steps, smoothed, color=_LOSS, linewidth=2.2)
    if values and min(values) > 0 and max(values) > 4 * min(values):
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_locator(LogLocator(subs=()))
    if values:
        _label_end(axes, steps[-1], smoothed[-1], f"{smoothed[-1]:.3g}", _LOSS)
    axes.set_title("Training loss", loc="left", color=_INK)


def _draw_scores(axes: Any, scores: list[dict[str, Any]], summary: Mapping[str, Any]) -> None:
    """Draws two curves and, dashed in the same colours, the scores of guessing."""
    curves, heading = _AVERAGE_PRECISION, "Held-out mAP@100"
    if scores and not any(key in row for row in scores for key, *_ in curves):
        names = [name for name in scores[-1] if name not in _NO_SCORES]
        curves = tuple((name, "", name, color) for name, color in zip(names, (_SCORE, _SCORE_2), strict=False))
        heading = "Held-out scores"
    for key, chance_key, label, color in curves:
        points = [(row["step"], row[key]) for row in scores if key in row]
        if points:
            axes.plot(*zip(*points, strict=True), color=color, linewidth=2.2, marker="o", markersize=4, label=label)
            _label_end(axes, *points[-1], f"{points[-1][1]:.2f}", color)
        if summary.get(chance_key) is not None:
            axes.axhline(summary[chance_key], color=color, linestyle=_DASHES, linewidth=1.2)
    if summary.get("chance") is not None:
        axes.plot([], [], color=_INK, linestyle=_DASHES, linewidth=1.2, label="chance")
    axes.set_ylim(bottom=0)
    axes.set_title(heading, loc="left", color=_INK)
    if axes.get_legend_handles_labels()[0]:
        place = {"loc": "lower right", "bbox_to_anchor": (1.01, 1.07), "ncols": 3, "fontsize": 9}
        axes.legend(**place, labelcolor=_INK, frameon=False, columnspacing=1.2, handlelength=1.6)


def _label_end(axes: Any, x: float, y: float, text: str, color: str) -> None:
    axes.annotate(text, (x, y), xytext=(7, -4), textcoords="offset points", color=color, fontweight="bold")


def _style(axes: Any, last_step: int) -> None:
    axes.set_xlim(0, max(1, last_step) * 1.12)
    axes.set_xlabel("global step", color=_INK)
    axes.grid(True, color=_FAINT, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(which="both", colors=_INK, length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
