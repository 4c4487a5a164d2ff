"""Numbers as few characters: curves, bars, sizes, times; in blocks of Unicode, or in ASCII. Pure."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

_LOG_FROM = 8.0  # largest over smallest value, from which a curve has a logarithmic scale


@dataclass(frozen=True)
class Glyphs:
    """The characters of a view.

    Attributes:
        levels: Of a column, from empty to full.
        parts: Of a bar: input, compute, wait.
        done: Of the part of the run that is done.
        left: Of the part that is left.
    """

    levels: str
    parts: str
    done: str
    left: str


BLOCKS = Glyphs(" ▁▂▃▄▅▆▇█", "▒█░", "━", "─")
ASCII = Glyphs(" .:-=+*#@", "=#.", "=", "-")


def curve(values: Sequence[float], width: int, rows: int = 1, glyphs: Glyphs = BLOCKS) -> list[str]:
    """A curve of the means of `width` equal parts of the values, lines from the top; logarithmic if they vary much."""
    known = [value for value in values if math.isfinite(value)]
    if not known or width < 1:
        return [""] * rows
    num = min(width, len(known))
    edges = [len(known) * i // num for i in range(num + 1)]
    means = [sum(known[a:b]) / (b - a) for a, b in itertools.pairwise(edges)]
    if min(means) > 0 and max(means) > _LOG_FROM * min(means):
        means = [math.log(mean) for mean in means]
    low, high = min(means), max(means)
    full = len(glyphs.levels) - 1
    heights = [1 + round((rows * full - 1) * (mean - low) / ((high - low) or 1.0)) for mean in means]
    return [
        "".join(glyphs.levels[min(max(height - row * full, 0), full)] for height in heights)
        for row in reversed(range(rows))
    ]


def distribution(counts: Sequence[int], width: int, glyphs: Glyphs = BLOCKS) -> str:
    """Counts by number as columns between the first number and the last one that is counted: `0 ▄█▂▁ 3`."""
    known = [number for number, count in enumerate(counts) if count]
    if not known:
        return ""
    first, last = known[0], known[-1]
    room = max(width - len(f"{first}  {last}"), 1)
    per = -(-(last - first + 1) // room)
    sums = [sum(counts[start : start + per]) for start in range(first, last + 1, per)]
    full = len(glyphs.levels) - 1
    columns = "".join(glyphs.levels[math.ceil(full * total / max(sums))] for total in sums)
    return f"{first} {columns} {last}"


def lengths(parts: Iterable[float], whole: float, width: int) -> list[int]:
    """Characters of the parts of a bar whose `width` stands for `whole`; rounded so that their sum is right."""
    ends, total = [0], 0.0
    for part in parts:
        total += max(part, 0.0)
        ends.append(min(round(width * total / whole), width) if whole > 0 else 0)
    return [end - begin for begin, end in itertools.pairwise(ends)]


def short(number: float) -> str:
    """`7`, `123`, `12.3k`, `4.56M`."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e4)):
        if number >= size:
            scaled = number / (1e3 if unit == "k" else size)
            return f"{scaled:.{2 if scaled < 10 else 1 if scaled < 100 else 0}f}{unit}"
    return f"{number:.0f}"


def size(num_bytes: float) -> str:
    """`0.4 kB`, `15.4 MB`, `1.2 GB`."""
    unit, scale = ("GB", 1e9) if num_bytes >= 1e9 else ("MB", 1e6) if num_bytes >= 1e6 else ("kB", 1e3)
    scaled = num_bytes / scale
    return f"{scaled:.{1 if scaled < 100 else 0}f} {unit}"


def time_text(seconds: float | None) -> str:
    """`0.4 ms`, `42 ms`, `1.23 s`; nothing if it is not known."""
    if seconds is None:
        return ""
    if seconds < 0.0995:
        return f"{seconds * 1e3:.{1 if seconds < 0.00995 else 0}f} ms"
    return f"{seconds:.{2 if seconds < 10 else 1 if seconds < 100 else 0}f} s"
