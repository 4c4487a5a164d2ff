"""Charts as inline SVG in figures: lines, bars, parts of a step, a timeline. Pure; draws by itself.

Coordinates are those of a view box 400 wide, which fits a phone. Colours are classes `c0` to `c7` of the page's style,
which are dashed differently, so that lines are told apart without colours too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape

from downpour.launch.observe.reports.html import number, seconds
from downpour.launch.observe.reports.style import COLOURS as COLOURS
from downpour.launch.observe.status_text import duration

Point = tuple[float, float]
_WIDTH, _HEIGHT, _TOP, _RIGHT, _BOTTOM = 400, 230, 12, 16, 40
_CHARACTER = 7.2  # units of width, at most
_MOST_POINTS = 400  # of a line
_LONG_NAME = 14  # characters
_MOST_BARS, _REST = 24, 0.005
_TIMES = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 10800, 21600, 43200, 86400)


@dataclass(frozen=True)
class Line:
    """A line of a chart.

    Attributes:
        name: For the legend; "" for none.
        points: x and y, x ascending; those that are not finite are left out.
        colour: 0 to 7.
        kind: `raw` for values that another line smooths, `dots` for few ones, or "".
        last: The last value, as the legend has it; "" for none.
    """

    name: str
    points: Sequence[Point]
    colour: int = 0
    kind: str = ""
    last: str = ""


def lines(
    title: str,
    drawn: Sequence[Line],
    x_name: str,
    note: str = "",
    *,
    from_zero: bool = False,
    logarithmic: bool = False,
    times: bool = False,
) -> str:
    """A figure of lines; "" without a point.

    Args:
        title: Its heading.
        drawn: The lines.
        x_name: Name of the horizontal axis.
        note: What it shows, where the heading does not say it.
        from_zero: Whether the vertical axis begins at 0.
        logarithmic: Whether that axis is logarithmic if all values are above 0 and they spread over more than fourfold.
        times: Whether x is seconds, shown as times.
    """
    kept = [(line, points) for line in drawn if (points := _thinned(line.points))]
    if not kept:
        return ""
    xs, ys = [x for _, points in kept for x, _ in points], [y for _, points in kept for _, y in points]
    logarithmic = logarithmic and min(ys) > 0 and max(ys) > 4 * min(ys)
    low, high, y_ticks = _log_axis(min(ys), max(ys)) if logarithmic else _axis(0.0 if from_zero else min(ys), max(ys))
    x_low, x_high = 0.0, max(*xs, 1.0)
    left = 10 + _CHARACTER * max(len(number(tick)) for tick in y_ticks)
    across = _scale(x_low, x_high, left, _WIDTH - _RIGHT)
    up = _scale(math.log(low), math.log(high), _HEIGHT - _BOTTOM, _TOP) if logarithmic else None
    linear = _scale(low, high, _HEIGHT - _BOTTOM, _TOP)
    height: Callable[[float], float] = (lambda y: up(math.log(y))) if up else linear
    parts = [_grid(height(tick), left, number(tick)) for tick in y_ticks]
    parts += _x_axis(x_low, x_high, across, x_name, times)
    for line, points in kept:
        places = [(round(across(x), 1), round(height(y), 1)) for x, y in points]
        if len(places) > 1:
            joined = " ".join(f"{x},{y}" for x, y in places)
            parts.append(f'<polyline class="line c{line.colour} {line.kind}" points="{joined}"/>')
        if line.kind == "dots" or len(places) == 1:
            parts += [f'<circle class="dot c{line.colour}" cx="{x}" cy="{y}" r="3"/>' for x, y in places]
    shown = [line for line, _ in kept if line.name]
    words = "; ".join(_in_words(line.name or title, points, times) for line, points in kept if line.kind != "raw")
    legend = [(line.colour, f"{line.name} {line.last}".strip()) for line in shown]
    return _figure(title, note, legend, f"{title}. {words}", _HEIGHT, parts)


def bars(title: str, counts: Mapping[int, int], x_name: str, note: str = "") -> str:
    """A histogram of counts by whole number, as shares of all; "" without a count."""
    total = sum(counts.values())
    if not total:
        return ""
    most, left_out = 0, total  # the last bar has the rest, at most one in two hundred
    while left_out > total * _REST and most < _MOST_BARS:
        left_out -= counts.get(most, 0)
        most += 1
    binned = [counts.get(value, 0) for value in range(most)] + ([left_out] if left_out else [])
    shares = [100 * count / total for count in binned]
    _, high, ticks = _axis(0.0, max(shares))
    left = 10 + _CHARACTER * max(len(f"{number(tick)} %") for tick in ticks)
    each = (_WIDTH - _RIGHT - left) / len(shares)
    height = _scale(0.0, high, _HEIGHT - _BOTTOM, _TOP)
    parts = [_grid(height(tick), left, f"{number(tick)} %") for tick in ticks]
    names = [*map(str, range(most)), *([f"{most}+"] if left_out else [])]
    every = math.ceil(max(map(len, names)) * (_CHARACTER + 2) / each)
    for i, (name, share, count) in enumerate(zip(names, shares, binned, strict=True)):
        x, y = left + i * each, height(share)
        parts.append(
            f'<rect class="bar c0" x="{x + 1:.1f}" y="{y:.1f}" width="{max(each - 2, 1):.1f}" '
            f'height="{_HEIGHT - _BOTTOM - y:.1f}"><title>{name}: {count:,} ({share:.1f} %)</title></rect>'
        )
        if i % every == 0:
            parts.append(_text(x + each / 2, _HEIGHT - _BOTTOM + 16, name, "middle"))
    parts.append(_text((left + _WIDTH - _RIGHT) / 2, _HEIGHT - 6, x_name, "middle"))
    words = ", ".join(f"{name}: {share:.1f} %" for name, share in zip(names, shares, strict=True))
    return _figure(title, note, [], f"{title}, of {total:,}. {words}", _HEIGHT, parts)


def stacked(
    title: str, rows: Sequence[tuple[str, Mapping[str, float], Mapping[str, float]]], note: str, names: Sequence[str]
) -> str:
    """A bar of seconds for each row, and a thin one below it for what overlaps the first.

    Args:
        title: The heading.
        rows: Name, seconds by part of the bar, and of the thin one.
        note: What it shows.
        names: All parts, in the order of their colours.
    """
    longest = max((max(sum(first.values()), sum(second.values())) for _, first, second in rows), default=0.0)
    if not longest:
        return ""
    above = 18 if max(len(name) for name, *_ in rows) > _LONG_NAME else 0  # what a name above its bar takes
    left, row = 8 + (0 if above else _CHARACTER * max(len(name) for name, *_ in rows)), 34 + above
    right = 14 + _CHARACTER * max(len(seconds(sum(first.values()))) for _, first, _ in rows)
    across, parts = _scale(0.0, longest, 0.0, _WIDTH - left - right), list[str]()
    for index, (name, first, second) in enumerate(rows):
        y, ends = 4 + row * index + above, list[float]()
        parts.append(_text(left - 6, y + 14, name, "end", "strong") if not above else _text(left, y - 5, name, "start"))
        for values, top, height in ((first, y, 18), (second, y + 20, 6)):
            x = left
            for part, value in values.items():
                width = across(value)
                parts.append(
                    f'<rect class="bar c{names.index(part)}" x="{x:.1f}" y="{top}" width="{width:.1f}" '
                    f'height="{height}"><title>{escape(name)}, {part}: {seconds(value)}</title></rect>'
                )
                x += width
            ends.append(x)
        parts.append(_text(max(ends) + 6, y + 14, seconds(sum(first.values())), "start", "strong"))
    words = "; ".join(
        f"{name}: {', '.join(f'{part} {seconds(value)}' for part, value in {**first, **second}.items())}"
        for name, first, second in rows
    )
    return _figure(title, note, list(enumerate(names)), f"{title}. {words}", row * len(rows) + 6, parts, swatch="bar")


def timeline(title: str, rows: Mapping[str, Sequence[tuple[float, str, bool]]], end: float, note: str) -> str:
    """Events over time, in a row for each kind; "" without any.

    Args:
        title: The heading.
        rows: Seconds, text and whether it is a fault, by the name of the row.
        end: Seconds at the end of the axis.
        note: What it shows.
    """
    shown = {name: events for name, events in rows.items() if events}
    if not shown:
        return ""
    left, height = 10 + _CHARACTER * max(map(len, shown)), 26 * len(shown) + 46
    end = max([end, 1.0, *(at for events in shown.values() for at, *_ in events)])
    across, parts = _scale(0.0, end, left + 6, _WIDTH - _RIGHT), list[str]()
    for index, (name, events) in enumerate(shown.items()):
        y = 18 + 26 * index
        parts.append(_text(left - 4, y + 4, name, "end", "strong"))
        parts.append(f'<line class="grid" x1="{left}" y1="{y}" x2="{_WIDTH - _RIGHT}" y2="{y}"/>')
        for at, text, is_fault in events:
            x, hint = across(at), f"<title>{duration(at)}: {escape(text)}</title>"
            shape = f"M{x:.1f} {y - 7}l6 7l-6 7l-6 -7z" if is_fault else ""
            parts.append(
                f'<path class="dot c1" d="{shape}">{hint}</path>'
                if is_fault
                else f'<circle class="dot c0" cx="{x:.1f}" cy="{y}" r="5">{hint}</circle>'
            )
    parts += _x_axis(0.0, end, across, "training time", True, height)
    words = "; ".join(f"{name}: {len(events)} events" for name, events in shown.items())
    return _figure(title, note, [], f"{title}. {words}", height, parts)


def _figure(
    title: str,
    note: str,
    legend: Iterable[tuple[int, str]],
    words: str,
    height: int,
    parts: Iterable[str],
    swatch: str = "line",
) -> str:
    items = "".join(f"<li>{_swatch(colour, swatch)}{escape(text)}</li>" for colour, text in legend)
    box = f'viewBox="0 0 {_WIDTH} {height}" role="img" aria-label="{escape(words)}"'
    return (
        f"<figure><h3>{escape(title)}</h3>"
        + (f"<figcaption>{escape(note)}</figcaption>" if note else "")
        + (f'<ul class="legend">{items}</ul>' if items else "")
        + f"<svg {box}>{''.join(parts)}</svg></figure>"
    )


def _swatch(colour: int, kind: str) -> str:
    shape = f'<path class="line c{colour}" d="M0 5h26"/>'
    if kind == "bar":
        shape = f'<rect class="bar c{colour}" x="8" y="0" width="18" height="10"/>'
    return f'<svg viewBox="0 0 26 10" aria-hidden="true">{shape}</svg>'


def _text(x: float, y: float, text: str, anchor: str, kind: str = "") -> str:
    words = f' class="{kind}"' if kind else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{words}>{escape(text)}</text>'


def _grid(y: float, left: float, text: str) -> str:
    line = f'<line class="grid" x1="{left:.1f}" y1="{y:.1f}" x2="{_WIDTH - _RIGHT}" y2="{y:.1f}"/>'
    return line + _text(left - 6, y + 4.5, text, "end")


def _x_axis(
    low: float, high: float, across: Callable[[float], float], name: str, times: bool, height: int = _HEIGHT
) -> list[str]:
    if times:
        step = next((one for one in _TIMES if (high - low) / one <= 5), 86400 * math.ceil((high - low) / (5 * 86400)))
        ticks = [float(i * step) for i in range(math.ceil(low / step), math.floor(high / step) + 1)]
    else:
        ticks = [tick for tick in _ticks(low, high, 5) if low <= tick <= high]
    words = duration if times else number
    y = height - _BOTTOM + 16
    found = [
        _text(across(tick), y, words(tick), "middle" if across(tick) < _WIDTH - _RIGHT - 12 else "end")
        for tick in ticks
    ]
    return [*found, _text((across(low) + across(high)) / 2, height - 6, name, "middle")]


def _scale(low: float, high: float, first: float, last: float) -> Callable[[float], float]:
    factor = (last - first) / (high - low) if high > low else 0.0
    return lambda value: first + (value - low) * factor


def _axis(low: float, high: float) -> tuple[float, float, list[float]]:
    """Ends of a linear axis and the marks on it, which include both ends."""
    if high <= low:
        low, high = (low - abs(low) / 2, high + abs(high) / 2) if high else (0.0, 1.0)
        low = max(low, 0.0) if high > 0 else low
    ticks = _ticks(low, high, 4)
    return ticks[0], ticks[-1], ticks


def _ticks(low: float, high: float, about: int) -> list[float]:
    """Round numbers from at most `low` to at least `high`."""
    rough = (high - low) / about
    unit = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * unit for factor in (1, 2, 5, 10) if factor * unit >= 0.999 * rough)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def _log_axis(low: float, high: float) -> tuple[float, float, list[float]]:
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    fine = [factor * 10.0**decade for decade in decades for factor in (1, 2, 5)]
    ticks = fine if high < 1000 * low else [10.0**decade for decade in decades]
    first = max(i for i, tick in enumerate(ticks) if tick <= low * 1.0001)
    last = min((i for i, tick in enumerate(ticks) if tick >= high * 0.9999), default=len(ticks) - 1)
    kept = ticks[first : last + 1]
    return kept[0], max(kept[-1], high), kept


def _thinned(points: Sequence[Point]) -> list[Point]:
    """At most 400 points: means of consecutive ones; the last one stays."""
    finite = [(x, y) for x, y in points if math.isfinite(x) and math.isfinite(y)]
    width = -(-len(finite) // _MOST_POINTS)
    if width <= 1:
        return finite
    groups = [finite[i : i + width] for i in range(0, len(finite), width)]
    means = [tuple(sum(values) / len(group) for values in zip(*group, strict=True)) for group in groups]
    return [*((x, y) for x, y in means[:-1]), finite[-1]]


def _in_words(name: str, points: Sequence[Point], times: bool) -> str:
    (x, first), (_, last) = points[0], points[-1]
    where = duration(x) if times else number(x)
    return (
        f"{name}: {number(first)} at {where}, at the end {number(last)}"
        if len(points) > 1
        else f"{name}: {number(last)}"
    )
