"""Simulated trainings side by side: as a table, a figure and a RESULT. matplotlib is imported only to draw."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from downpour import files, how_to_install
from downpour.launch.planning import queueing
from downpour.launch.planning.simulation import Simulated

FORMATS = ("svg", "png", "pdf")
_MOST_SCORES = 3  # columns
_INK, _FAINT = "#1f2933", "#d9e2ec"


@dataclass(frozen=True)
class Run:
    """One simulated training of several.

    Attributes:
        variant: How its job differs from the recipe; "" if it does not.
        result: What came out.
    """

    variant: str
    result: Simulated

    @property
    def name(self) -> str:
        """Such as `16 workers, staleness=Divide`."""
        num = self.result.num_workers
        return ", ".join(filter(None, [f"{num} worker{'s' * (num > 1)}", self.variant]))


def scores_of(runs: Sequence[Run]) -> list[str]:
    """Names of the scores worth a column, the one that is drawn first: no loss, if there is another."""
    names = [name for run in runs for name in run.result.points[0].scores if not name.startswith("chance")]
    return sorted(dict.fromkeys(names), key=lambda name: name.endswith("loss"))[:_MOST_SCORES]


def table(runs: Sequence[Run], *, timed: bool, histograms: bool = True) -> str:
    """One line a run, then how stale its pushes were, and why it failed if it did.

    Args:
        runs: The runs.
        timed: Whether the time that a worker computes is known, and so are speed and hours.
        histograms: Whether staleness is shown in full.
    """
    names = scores_of(runs)
    has_variants, has_dropped = any(run.variant for run in runs), any(run.result.dropped for run in runs)
    head = ["workers", *["variant"] * has_variants, "steps", "examples", *names, "loss", "staleness", "p50", "p99"]
    rows = [[*head, *["dropped"] * has_dropped, *["steps/s", "hours"] * timed]]
    for run in runs:
        found, last, counts = run.result, run.result.last, np.array(run.result.staleness)
        row = [str(found.num_workers), *[run.variant or "-"] * has_variants, f"{last.step:,}", f"{last.examples:,}"]
        row += [f"{last.scores[name]:.4f}" if name in last.scores else "-" for name in names]
        row += [f"{last.loss:.4g}", f"{found.staleness_mean:.2f}"]
        row += [str(queueing.percentile_of(counts, share)) for share in (0.5, 0.99)]
        row += [f"{found.dropped:.1%}"] * has_dropped
        rows.append([*row, *[f"{found.steps_per_second:.3g}", f"{last.seconds / 3600:.3g}"] * timed])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    for run in runs:
        if histograms:
            lines += ["", f"{run.name}: pushes by staleness", *queueing.rows_of(np.array(run.result.staleness))]
        if run.result.failure:
            lines.append(f"{run.name} ended early: {run.result.failure}")
    return "\n".join(lines)


def result(runs: Sequence[Run], *, timed: bool) -> list[dict[str, Any]]:
    """The runs as JSON values; numbers that are not finite, and times that are not known, are None."""
    rows = []
    for run in runs:
        found = asdict(run.result) | {"variant": run.variant, "staleness_mean": run.result.staleness_mean}
        found |= {"steps_per_second": run.result.steps_per_second if timed else None}
        for point in found["points"]:
            point["seconds"] = point["seconds"] if timed else None
        rows.append(finite(found))
    return rows


def finite(value: Any) -> Any:
    """A nest of JSON values with None for numbers that are not finite, which JSON does not have."""
    if isinstance(value, dict):
        return {key: finite(child) for key, child in value.items()}
    if isinstance(value, list | tuple):
        return [finite(child) for child in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def check_drawable(path: Path) -> None:
    """Raises `ValueError` if a figure cannot be drawn to a path: before the work, not after it."""
    if path.suffix[1:] not in FORMATS:
        raise ValueError(f"--plot={path}; give a file that ends with .{', .'.join(FORMATS)}")
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise ValueError(f"--plot: matplotlib is not installed; {how_to_install('quickstart')}") from None


def draw(runs: Sequence[Run], title: str, path: Path, *, timed: bool) -> None:
    """Draws the first score, or the loss where nothing is scored, over examples and, if `timed`, over hours."""
    from matplotlib import colormaps
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    name = next(iter(scores_of(runs)), "loss")
    figure = Figure(figsize=(6 + 5 * timed, 4.5), dpi=160, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, color=_INK, fontweight="bold", x=0.012, ha="left")
    panels = np.atleast_1d(figure.subplots(1, 1 + timed, sharey=True))
    for axes, label in zip(panels, ("examples", "predicted hours"), strict=False):
        for number, run in enumerate(runs):
            points = [point for point in run.result.points if name in point.scores or name == "loss"]
            x = [point.examples if label == "examples" else point.seconds / 3600 for point in points]
            y = [point.scores.get(name, point.loss) for point in points]
            axes.plot(x, y, marker="o", markersize=3, color=colormaps["tab10"](number % 10), label=run.name)
        axes.set_xlabel(label, color=_INK)
        axes.grid(color=_FAINT)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel(name, color=_INK)
    panels[0].legend(fontsize=8, frameon=False)
    with files.replacing(path) as temporary:
        figure.savefig(temporary, format=path.suffix[1:])
