"""The epochs of a run as its chief notes them in `history.jsonl`: read at once, or as they come in.

Threads: one an object.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

_NO_VALUES = ("kind", "epoch", "step", "seconds")


class EpochRows:
    """Reads the rows of epochs as they are appended.

    Args:
        path: Path of the history, which need not exist yet.
        first: Rows of earlier epochs are left out.
        known: Lines that are left out; see `lines`.
    """

    def __init__(self, path: Path, first: int = 0, known: Collection[bytes] = ()) -> None:
        self._path, self._next, self._known = path, first, known
        self._offset, self._rest = 0, b""

    def new(self) -> list[dict[str, Any]]:
        """Returns the rows that were not returned before, by epoch: `epoch`, `step`, `seconds` and the values."""
        found = []
        for line in self._lines():
            if line in self._known:
                continue
            row = _parsed(line)
            if row.get("kind") == "epoch" and row["epoch"] >= self._next:
                found.append(row)
                self._next = row["epoch"] + 1
        return found

    def _lines(self) -> list[bytes]:
        """Returns the whole lines that were appended; after the file was replaced, all."""
        if not self._path.exists():
            return []
        with self._path.open("rb") as file:
            if file.seek(0, 2) < self._offset:
                self._offset, self._rest = 0, b""
            file.seek(self._offset)
            *lines, self._rest = (self._rest + file.read()).split(b"\n")
            self._offset = file.tell()
        return lines


def lines(path: Path) -> frozenset[bytes]:
    """Lines of a history, which need not exist yet."""
    return frozenset(path.read_bytes().split(b"\n")) if path.exists() else frozenset()


def first_open(path: Path, step: int) -> int:
    """The first epoch that a run which resumes at a step will add to the history.

    The last ones may have been noted without their scores, when the run was stopped; it adds them again.
    """
    rows = [row for row in EpochRows(path).new() if row["step"] <= step]
    if any(map(has_scores, rows)):
        while not has_scores(rows[-1]):
            rows.pop()
    return rows[-1]["epoch"] + 1 if rows else 0


def best_step(path: Path, monitor: str) -> int | None:
    """Step of the checkpoint with the best score of a name, as `KeepBest` has noted it; None without any."""
    rows = [_parsed(line) for line in path.read_bytes().splitlines()] if path.exists() else []
    steps = [int(row["step"]) for row in rows if row.get("kind") == "best" and row.get("monitor") == monitor]
    return steps[-1] if steps else None


def values(row: Mapping[str, Any]) -> dict[str, float]:
    """Loss, scores and what else an epoch has, by name."""
    return {name: value for name, value in row.items() if name not in _NO_VALUES}


def has_scores(row: Mapping[str, Any]) -> bool:
    """Whether an epoch has more than its loss."""
    return not values(row).keys() <= {"loss"}


def by_name(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[float]]:
    """One value an epoch by name, as `History.history` of Keras; NaN where an epoch has none."""
    names = dict.fromkeys(["loss", *(name for row in rows for name in values(row))])
    return {name: [float(row.get(name, math.nan)) for row in rows] for name in names}


def _parsed(line: bytes) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except ValueError:  # cut off
        return {}
    return row if isinstance(row, dict) else {}
