"""Which classes of a label tree are scored, and how much each counts: two optional files beside a data set.

`annotated.json` is a JSON list of names: the classes that were annotated in the held-out images, where those are fewer
than the tree has. Of the others nobody knows which images carry them, so they are neither labels nor predictions.
A file of class weights is a JSON object `{name: weight}`, or a CSV with the columns `label` and `weight`.
"""

from __future__ import annotations

import csv
import difflib
import json
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from downpour.model.vision.labels import LABELS_FILE, LabelTree

ANNOTATED_FILE = "annotated.json"
_SHOWN = 3  # unknown names that one message holds
_COLUMNS = ["label", "weight"]


@dataclass(frozen=True)
class ScoredClasses:
    """The classes that count in mAP.

    Attributes:
        annotated: Indices of the classes that are scored, in order; None for all.
        weights: [C] float64, the weight of each class in the weighted mean; None for popularity, the number of images
            that carry it.
    """

    annotated: NDArray[np.intp] | None = None
    weights: NDArray[np.float64] | None = None


ALL = ScoredClasses()


def read(tree: LabelTree, annotated: Path | str | None = None, weights: Path | str | None = None) -> ScoredClasses:
    """Reads what the two files say of the classes of a tree.

    Args:
        tree: The label tree.
        annotated: File of the annotated classes; None for all classes.
        weights: File of class weights; None for popularity. A class that it does not name has the weight 0.

    Raises:
        ValueError: A file cannot be read or is of another form, or names a class that the tree does not have or one
            twice; a weight is not a finite number of at least 0, or no class that is scored has one above 0.
    """
    chosen = None if annotated is None else _annotated(tree, Path(annotated))
    if weights is None:
        return ScoredClasses(chosen)
    given = _weights(Path(weights))
    found = np.zeros(len(tree))
    found[indices(tree, given, weights)] = list(given.values())
    if not found[slice(None) if chosen is None else chosen].any():
        raise ValueError(f"{weights}: no class that is scored has a weight above 0; give at least one")
    return ScoredClasses(chosen, found)


def indices(tree: LabelTree, names: Iterable[str], where: Path | str) -> list[int]:
    """Indices of labels by name, in the order given.

    Args:
        tree: The label tree.
        names: Names of labels.
        where: File that they stem from, for the message.

    Raises:
        ValueError: The tree does not have a name; the message names the first few, with the nearest that it has.
    """
    index, names = {name: label for label, name in enumerate(tree.names)}, list(names)
    unknown = [name for name in names if name not in index]
    if unknown:
        shown = ", ".join(_with_nearest(name, tree.names) for name in unknown[:_SHOWN])
        more = f" and {len(unknown) - _SHOWN} more" if len(unknown) > _SHOWN else ""
        raise ValueError(
            f"{where} names {shown}{more}, which {'is' if len(unknown) == 1 else 'are'} not among the "
            f"{len(tree)} labels of the data; give names of its {LABELS_FILE}"
        )
    return [index[name] for name in names]


def _with_nearest(name: str, names: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, names, 2)
    return f"{name!r} (did you mean {' or '.join(map(repr, near))}?)" if near else repr(name)


def _annotated(tree: LabelTree, path: Path) -> NDArray[np.intp]:
    names = _json(path)
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise ValueError(f"{path} holds {_shown(names)}; give a JSON list of the names of the classes annotated")
    _check_once(names, path)
    return np.sort(np.array(indices(tree, names, path), np.intp))


def _weights(path: Path) -> dict[str, float]:
    given = _json(path) if path.suffix.lower() != ".csv" else _table(path)
    if not isinstance(given, dict) or not given:
        raise ValueError(f"{path} holds {_shown(given)}; give a JSON object {{name: weight}}, or a CSV of label,weight")
    for name, weight in given.items():
        is_number = isinstance(weight, int | float) and not isinstance(weight, bool)
        if not (is_number and 0 <= weight < math.inf):
            raise ValueError(f"{path}: the weight of {name!r} is {weight!r}; give a finite number of at least 0")
    return given


def _table(path: Path) -> dict[str, Any]:
    """The weights of a CSV; those that are no numbers stay texts."""
    rows = csv.reader(_text(path).splitlines())
    if next(rows, []) != _COLUMNS:
        raise ValueError(f"{path}: the first line is not {','.join(_COLUMNS)}; give a CSV of these two columns")
    given: list[tuple[str, Any]] = []
    for row in rows:
        if len(row) != len(_COLUMNS):
            raise ValueError(f"{path}, line {rows.line_num}: {len(row)} columns; give {' and '.join(_COLUMNS)}")
        try:
            given.append((row[0], float(row[1])))
        except ValueError:
            given.append((row[0], row[1]))
    _check_once([name for name, _ in given], path)
    return dict(given)


def _json(path: Path) -> Any:
    try:
        return json.loads(_text(path), object_pairs_hook=lambda pairs: _once(pairs, path))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not JSON: {error}") from None


def _once(pairs: list[tuple[str, Any]], path: Path) -> dict[str, Any]:
    _check_once([name for name, _ in pairs], path)
    return dict(pairs)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ValueError(f"{path} cannot be read: {reason}; give a file of names of classes") from None


def _check_once(names: Sequence[str], path: Path) -> None:
    if repeated := sorted(name for name, count in Counter(names).items() if count > 1):
        raise ValueError(f"{path} names {repeated[0]!r} twice; give every class once")


def _shown(value: Any) -> str:
    return f"{json.dumps(value)[:60]}"
