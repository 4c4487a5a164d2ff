"""The curves of the page: read from `history.jsonl` as it grows, as a bounded number of points.

Nothing is read until somebody asks, and then only what was added since. A curve that has too many points keeps the
means of neighbours, so that memory and time are bounded however long a run lasts.

Threads: one at a time; the server has a lock.
"""

from __future__ import annotations

import json
import os
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from downpour.worker.chief.progress import finite

MOST_POINTS = 300  # of a curve in an answer
MOST_CURVES = 16
_KEPT = 2048  # points of a curve in memory
_MOST_ENTRIES = 300  # on progress: one comes after a hundredth of the time so far
_READ_BYTES = 1 << 20  # at a time
_NO_SCORES = ("kind", "step", "seconds", "time")
_OF_PROGRESS = ("examples_per_second", "staleness_mean", "learning_rate")

Point = tuple[int, int, float, float]  # number of its line in the file, step, seconds of training, value


class Curve:
    """Points in the order of their lines; beyond `_KEPT` neighbours are replaced by their mean."""

    def __init__(self) -> None:
        self._points: list[Point] = []
        self._width = 1  # entries that a point is the mean of
        self._waiting: list[Point] = []  # fewer than `_width`

    def add(self, point: Point) -> None:
        """Adds a point."""
        self._waiting.append(point)
        if len(self._waiting) >= self._width:
            self._points.append(_mean(self._waiting))
            self._waiting = []
        if len(self._points) >= _KEPT:
            self._points = _thinned(self._points, 2)
            self._width *= 2

    def after(self, line: int) -> list[Point]:
        """At most `MOST_POINTS` points of lines after the first `line`; the last is the newest that was added."""
        points = [point for point in self._points + self._waiting[-1:] if point[0] > line]
        return _thinned(points[:-1], -(-len(points) // (MOST_POINTS - 1))) + points[-1:] if points else []


class Curves:
    """The curves of one run's history.

    Args:
        path: The file; it need not exist yet.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = 0  # inode; another one replaces it where a run begins anew or goes back to a checkpoint
        self._offset = self._lines = 0  # what was read of it
        self._curves: dict[str, Curve] = {}
        self._progress = deque[dict[str, Any]](maxlen=_MOST_ENTRIES)
        self._states: dict[str, dict[str, str]] = {}  # one object for all workers in a state

    def progress(self) -> list[dict[str, Any]]:
        """The newest entries of the kind `progress`, with what `downpour.launch.observe.findings` needs of them."""
        self._read()
        return list(self._progress)

    def after(self, line: int) -> dict[str, Any]:
        """Returns the curves, as JSON values.

        Args:
            line: Only points of lines after so many; 0 for all. Not a step: the score of a step comes later than it.

        Returns:
            `file`, which changes where the history was replaced, so that a reader must ask for all again; `next`, to
            give as `line` the next time; and `curves`: lists of [step, seconds of training, value] by name, with
            `score.` before the names of scores.
        """
        self._read()
        curves = {name: [point[1:] for point in curve.after(line)] for name, curve in self._curves.items()}
        return {"file": self._file, "next": self._lines, "curves": curves}

    def _read(self) -> None:
        """Reads the whole lines that were added."""
        try:
            with self._path.open("rb") as file:
                found = os.fstat(file.fileno())
                if found.st_ino != self._file or found.st_size < self._offset:
                    self._file, self._offset, self._lines, self._curves = found.st_ino, 0, 0, {}
                    self._progress.clear()
                file.seek(self._offset)
                rest = b""
                while piece := file.read(_READ_BYTES):
                    *lines, rest = (rest + piece).split(b"\n")
                    for line in lines:
                        self._offset += len(line) + 1
                        self._lines += 1
                        self._add(line)
        except OSError:  # not written yet; or the disk fails, which the chief says
            return

    def _add(self, line: bytes) -> None:
        try:
            entry = json.loads(line)
            values, step, seconds = dict(_values(entry)), int(entry["step"]), float(entry.get("seconds") or 0.0)
            if entry["kind"] == "progress":
                self._progress.append(self._trimmed(entry))
        except (ValueError, KeyError, TypeError, AttributeError):  # cut off, or not of the chief
            return
        for name, value in values.items():
            if name in self._curves or len(self._curves) < MOST_CURVES:
                self._curves.setdefault(name, Curve()).add((self._lines, step, seconds, value))

    def _trimmed(self, entry: dict[str, Any]) -> dict[str, Any]:
        states = {index: str(one["state"]) for index, one in entry["workers"].items()}
        workers = {index: self._states.setdefault(state, {"state": state}) for index, state in states.items()}
        return {name: entry[name] for name in ("kind", "step", "seconds", "staleness")} | {"workers": workers}


def _values(entry: dict[str, Any]) -> Iterator[tuple[str, float]]:
    """Yields names of curves and the values that an entry adds to them."""
    kind = entry.get("kind")
    found: dict[str, Any] = {}
    if kind == "loss":
        found = {"loss": entry.get("loss")}
    elif kind == "score":
        found = {f"score.{name}": value for name, value in entry.items() if name not in _NO_SCORES}
    elif kind == "progress":
        found = {name: entry.get(name) for name in _OF_PROGRESS}
    for name, value in found.items():
        number = finite(value)
        if number is not None:
            yield name, number


def _thinned(points: list[Point], width: int) -> list[Point]:
    return [_mean(points[i : i + width]) for i in range(0, len(points), max(width, 1))]


def _mean(points: list[Point]) -> Point:
    """The last line, step and time, and the mean value."""
    return *points[-1][:3], sum(point[3] for point in points) / len(points)
