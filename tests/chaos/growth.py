"""What processes hold, and whether it grows. Pure but for the look at a process."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import psutil

_MB = 1 << 20
_MEMORY_GROWTH = 1.05
# How much higher a mean may be. A worker's threads come and go, 16 to 20 at a time.
_MORE = {"fds": 1.0, "threads": 2.0, "processes": 0.5}

Series = Mapping[tuple[str, str], Sequence[tuple[float, float]]]  # seconds and value, by process and quantity


@dataclass(frozen=True)
class Trend:
    """How a quantity of a process developed.

    Attributes:
        first: Mean over the first quarter of the time.
        last: Mean over the last.
        per_hour: Slope of the line through all samples.
        grows: Whether that is too much.
    """

    first: float
    last: float
    per_hour: float
    grows: bool


def trends(series: Series) -> dict[str, dict[str, Trend]]:
    """The trend of every quantity, by process and quantity."""
    found: dict[str, dict[str, Trend]] = defaultdict(dict)
    for (name, quantity), points in series.items():
        found[name][quantity] = _trend(quantity, points)
    return found


def _trend(quantity: str, points: Sequence[tuple[float, float]]) -> Trend:
    times, values = np.array(points, float).T
    quarter = (times[-1] - times[0]) / 4
    first = float(values[times <= times[0] + quarter].mean())
    last = float(values[times >= times[-1] - quarter].mean())
    slope = float(np.polyfit(times / 3600, values, 1)[0]) if len(points) > 1 else 0.0
    grows = last > (first + _MORE[quantity] if quantity in _MORE else first * _MEMORY_GROWTH)
    return Trend(round(first, 2), round(last, 2), round(slope, 2), bool(grows))


def sample(pids: Mapping[str, int]) -> dict[tuple[str, str], float]:
    """What every process holds now; those that are gone are left out."""
    found: dict[tuple[str, str], float] = {}
    for name, pid in pids.items():
        try:
            process = psutil.Process(pid)
            # Not the proportional size: it grows when others end that have mapped the same libraries.
            rss = process.memory_info().rss
            values = {"fds": process.num_fds(), "threads": process.num_threads(), "rss_mb": rss / _MB}
        except psutil.NoSuchProcess:
            continue
        found |= {(name, quantity): float(value) for quantity, value in values.items()}
    return found


def table(found: Mapping[str, Mapping[str, Trend]]) -> str:
    """A line for each process and quantity."""
    lines = [f"{'process':<10} {'quantity':<10} {'first':>9} {'last':>9} {'per hour':>9}"]
    for name, quantities in found.items():
        for quantity, trend in quantities.items():
            grows = "  GROWS" if trend.grows else ""
            numbers = f"{trend.first:>9.2f} {trend.last:>9.2f} {trend.per_hour:>9.2f}"
            lines.append(f"{name:<10} {quantity:<10} {numbers}{grows}")
    return "\n".join(lines)
