"""What a study has found: its points, as a table, a plot and a RESULT. matplotlib is imported only to draw."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from downpour import files, how_to_install
from downpour.launch.studying.fit import Fit, fit
from downpour.launch.studying.grid import INITIALISED, RANDOM, Study
from downpour.launch.studying.trials import Outcome

FORMATS = ("svg", "png", "pdf")
_PREFERRED = ("map_at_100", "val_map_at_100", "val_accuracy")
_INK, _FAINT, _COLORS = "#1f2933", "#d9e2ec", ("#d1495b", "#3b6fb6")


@dataclass(frozen=True)
class Point:
    """One score: its curve ("" where there is one), its place on the axis, and the seed of its training."""

    curve: str
    size: float
    seed: int
    score: float


@dataclass(frozen=True)
class Found:
    """The points of a study.

    Attributes:
        study: The study.
        recipe: Name of the job.
        score: Name of the score.
        points: Its scores.
        line: Fitted to them over log10 of their sizes; None for `init`, which compares two curves.
        seconds: Of all trainings.
        cpu_s: Processor seconds of all trainings.
    """

    study: Study
    recipe: str
    score: str
    points: tuple[Point, ...]
    line: Fit | None
    seconds: float
    cpu_s: float

    def sizes(self) -> list[float]:
        """All places on the axis, ascending."""
        return sorted({point.size for point in self.points})

    def scores(self, size: float, curve: str = "") -> list[float]:
        """Scores at a place, by seed."""
        here = [point for point in self.points if (point.size, point.curve) == (size, curve)]
        return [point.score for point in sorted(here, key=lambda point: point.seed)]

    def curves(self) -> list[str]:
        """Names of the curves."""
        return [RANDOM, INITIALISED] if self.study.kind == "init" else [""]


def score_of(scores: Mapping[str, float], name: str) -> str:
    """The name of the score that is reported: the one that is asked for, or mAP@100, or the first that is no loss.

    Raises:
        ValueError: The checkpoints have no such score.
    """
    if name and name not in scores:
        raise ValueError(f"--score={name}; the checkpoints have {', '.join(scores)}")
    others = [one for one in scores if not one.endswith("loss") and "chance" not in one]
    preferred = [one for one in _PREFERRED if one in scores]
    return name or next(iter([*preferred, *others, *scores]))


def found(study: Study, recipe: str, name: str, outcomes: Sequence[Outcome]) -> Found:
    """The points of a study's trainings.

    Args:
        study: The study.
        recipe: Name of the job.
        name: Name of the score; "" to choose.
        outcomes: Of every trial.

    Raises:
        ValueError: The checkpoints have no such score.
    """
    name = score_of(outcomes[0].scores[-1][1], name)
    points = tuple(point for outcome in outcomes for point in _points(study, name, outcome))
    is_fitted = study.kind != "init" and len({point.size for point in points}) > 1
    line = fit([point.size for point in points], [point.score for point in points]) if is_fitted else None
    return Found(
        study, recipe, name, points, line, sum(one.seconds for one in outcomes), sum(one.cpu_s for one in outcomes)
    )


def _points(study: Study, name: str, outcome: Outcome) -> list[Point]:
    trial = outcome.trial
    if not study.of_checkpoints:
        return [Point(trial.curve, trial.size, trial.seed, outcome.scores[-1][1][name])]
    by_step = {_nominal(study, step): scores[name] for step, scores in outcome.scores}
    return [Point(trial.curve, step, trial.seed, score) for step, score in by_step.items()]


def _nominal(study: Study, step: int) -> int:
    """The step at which a checkpoint was due: the workers' pushes take it a few steps beyond."""
    return min(study.num_steps, max(1, round(step / study.every)) * study.every)


def table(data: Found) -> str:
    """In Markdown: a line for every size, and what the fitted line says."""
    return _comparison(data) if data.study.kind == "init" else _sizes(data)


def _sizes(data: Found) -> str:
    sizes, line = data.sizes(), data.line
    means = [statistics.fmean(data.scores(size)) for size in sizes]
    rows = [
        f"| {data.study.axis} | {data.score}, by seed | mean | line | 95 % band | gain per tenfold since the last |",
        "|---:|---|---:|---:|---|---:|",
    ]
    for number, (size, mean) in enumerate(zip(sizes, means, strict=True)):
        scores = " ".join(f"{score:.4f}" for score in data.scores(size))
        tenfolds = math.log10(size / sizes[number - 1]) if number else 1.0
        gain = _signed((mean - means[number - 1]) / tenfolds) if number else ""
        fitted = band = ""
        if line:
            at, margin = float(line.at(size)), float(line.margin(size))
            fitted = f"{at:.4f}"
            band = f"{at - margin:.4f} to {at + margin:.4f}" if math.isfinite(margin) else "-"
        rows.append(f"| {size:,g} | {scores} | {mean:.4f} | {fitted} | {band} | {gain} |")
    return "\n".join([*rows, "", *([_sentence(data, line)] if line else [])]).rstrip()


def _sentence(data: Found, line: Fit) -> str:
    margin = f" ± {line.slope_margin:.4f} (95 %)" if math.isfinite(line.slope_margin) else ""
    sign, number = _signed(line.slope)[0], _signed(line.slope)[1:]
    return (
        f"{data.score} = {line.intercept:.4f} {sign} {number}{margin} log10({data.study.axis}), R^2 {line.r2:.3f}, "
        f"{line.num_points} points."
    )


def _signed(value: float) -> str:
    """With its sign and four decimals; what they do not show has no minus."""
    return f"{round(value, 4) + 0.0:+.4f}"


def _comparison(data: Found) -> str:
    rows = [
        f"| {data.study.axis} | {data.score} from random values, by seed | mean | from the checkpoint, by seed | mean "
        "| difference |",
        "|---:|---|---:|---|---:|---:|",
    ]
    for size in data.sizes():
        cells, means = [], []
        for curve in data.curves():
            scores = data.scores(size, curve)
            means.append(statistics.fmean(scores) if scores else math.nan)
            cells += [" ".join(f"{score:.4f}" for score in scores), f"{means[-1]:.4f}"]
        rows.append(f"| {size:,g} | {' | '.join(cells)} | {_signed(means[1] - means[0])} |")
    return "\n".join(rows)


def result(data: Found) -> dict[str, Any]:
    """The study as JSON values: mean scores by size, or by step of both curves; None for what is not finite."""
    sizes = data.sizes()
    values: dict[str, Any] = {
        "kind": data.study.kind,
        "recipe": data.recipe,
        "score": data.score,
        "sizes": sizes,
        "seeds": len({point.seed for point in data.points}),
    }
    for curve in data.curves():
        means = [_mean(data.scores(size, curve)) for size in sizes]
        values["scores" if not curve else f"scores_{curve}"] = means
    if data.line:
        line = data.line
        values |= {"r2": line.r2, "slope": line.slope, "slope_margin": line.slope_margin, "intercept": line.intercept}
    values |= {"seconds": data.seconds, "cpu_s": data.cpu_s}
    return {name: _finite(value) for name, value in values.items()}


def _mean(scores: Sequence[float]) -> float | None:
    return round(statistics.fmean(scores), 5) if scores else None


def _finite(value: Any) -> Any:
    if not isinstance(value, float):
        return value
    return round(value, 5) if math.isfinite(value) else None


def check_drawable(path: Path) -> None:
    """Raises `ValueError` if no figure can be drawn to a path, or no line fitted: before the work, not after it."""
    if path.suffix[1:] not in FORMATS:
        raise ValueError(f"--plot={path}; give a file that ends with .{', .'.join(FORMATS)}")
    try:
        import matplotlib  # noqa: F401
        import scipy  # noqa: F401
    except ImportError as error:
        raise ValueError(f"a study needs {error.name}, which is not installed; {how_to_install('images')}") from None


def draw(data: Found, path: Path) -> None:
    """Draws every seed as a point, the means as a curve, and the line with its band where there is one.

    The axis of sizes is logarithmic, that of steps of two curves linear, as in figures 3 to 6 of Sun et al. 2017.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), dpi=160, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    if data.line:
        _draw_line(axes, data, data.line)
    labels = {"": "mean of the seeds", RANDOM: "from random values", INITIALISED: "from the checkpoint"}
    for curve, color in zip(data.curves(), _COLORS, strict=False):
        here = [point for point in data.points if point.curve == curve]
        sizes = sorted({point.size for point in here})
        axes.plot([p.size for p in here], [p.score for p in here], ".", color=color, alpha=0.5, markersize=7)
        means = [statistics.fmean(data.scores(size, curve)) for size in sizes]
        axes.plot(sizes, means, "o-", color=color, linewidth=1.8, markersize=4, label=labels[curve])
    if data.study.kind != "init":
        _log_axis(axes, data.sizes())
    axes.set_title(f"{data.recipe}: {data.study.kind}", loc="left", color=_INK, fontweight="bold")
    axes.set_xlabel(data.study.axis, color=_INK)
    axes.set_ylabel(data.score, color=_INK)
    axes.grid(color=_FAINT)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=8, frameon=False, loc="best")
    with files.replacing(path) as temporary:
        figure.savefig(temporary, format=path.suffix[1:])


def _draw_line(axes: Any, data: Found, line: Fit) -> None:
    sizes = np.geomspace(data.sizes()[0], data.sizes()[-1], 100)
    at, margin = line.at(sizes), line.margin(sizes)
    label = f"line: {_signed(line.slope)} per tenfold, $R^2$ {line.r2:.3f}"
    axes.plot(sizes, at, "--", color=_COLORS[1], linewidth=1.4, label=label)
    if np.isfinite(margin).all():
        axes.fill_between(sizes, at - margin, at + margin, color=_COLORS[1], alpha=0.15, label="95 % band of the line")


def _log_axis(axes: Any, sizes: Sequence[float]) -> None:
    """A logarithmic axis whose ticks are the sizes, those left out that would touch the one before."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    axes.set_xscale("log")
    room = math.log10(sizes[-1] / sizes[0]) / 10
    shown = [sizes[0]]
    for before, size in itertools.pairwise(sizes):
        if math.log10(size / shown[-1]) >= room and size > before:
            shown.append(size)
    axes.xaxis.set_major_locator(FixedLocator(shown))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    axes.xaxis.set_minor_locator(NullLocator())
