"""The label tree: names of the classes, and which class contains which.

Pure Python, no arrays: `data` converts labels and their ancestors to multi-hot rows.
"""

from __future__ import annotations

import json
import operator
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

LABELS_FILE = "labels.json"
_ROOT = -1


@dataclass(frozen=True, init=False)
class LabelTree:
    """Names of all labels and the parents of each: a directed acyclic graph, in most data sets a forest.

    Several labels may be roots, and a label may lie in several others, as "police dog" in "dog" and in "police".

    Args:
        names: See the attribute.
        parents: Of each label the index of the label that contains it, -1 for a root, or a sequence of indices, empty
            for a root.

    Attributes:
        names: Label `i` is called `names[i]`; no name occurs twice.
        parents: Indices of the labels that directly contain label `i`, in the order given, each once; none for a root.

    Raises:
        ValueError: Lengths differ, a name occurs twice, a parent does not exist, or labels contain each other.
    """

    names: tuple[str, ...]
    parents: tuple[tuple[int, ...], ...]

    def __init__(self, names: Iterable[str], parents: Iterable[int | Sequence[int]]) -> None:
        object.__setattr__(self, "names", tuple(names))
        object.__setattr__(self, "parents", tuple(map(_each_once, parents)))
        if len(self.names) != len(self.parents):
            raise ValueError(f"label tree: {len(self.names)} names but {len(self.parents)} parents; give one per name")
        self._check_names()
        self._check_range()
        if len(self._parents_first) < len(self.names):
            raise ValueError(f"label tree: labels contain each other, {self._circle()}; make one of them a root")

    def __len__(self) -> int:
        return len(self.names)

    def with_ancestors(self, labels: Iterable[int]) -> tuple[int, ...]:
        """Labels and everything that contains them, sorted, each once.

        Fills in the ancestors that an annotation leaves out ("apple" also counts as "fruit"), as Sun et al. 2017,
        section 3, do for JFT.

        Raises:
            ValueError: A label is not one of the tree's.
        """
        found: set[int] = set()
        for label in labels:
            if not 0 <= label < len(self.names):
                raise ValueError(f"label {label} is not in the tree; its labels are 0 to {len(self.names) - 1}")
            found.update(self.lineages[label])
        return tuple(sorted(found))

    @cached_property
    def lineages(self) -> tuple[tuple[int, ...], ...]:
        """For each label: itself, then all labels that contain it, each once; of a forest, in order up to the root."""
        found: list[tuple[int, ...]] = [()] * len(self.names)
        for label in self._parents_first:
            above = (ancestor for parent in self.parents[label] for ancestor in found[parent])
            found[label] = (label, *dict.fromkeys(above))
        return tuple(found)

    @cached_property
    def depth(self) -> int:
        """Number of labels on the longest path from a root down: 1 if all labels are roots."""
        levels = [0] * len(self.names)
        for label in self._parents_first:
            levels[label] = 1 + max((levels[parent] for parent in self.parents[label]), default=0)
        return max(levels, default=0)

    @property
    def widest(self) -> tuple[str, int]:
        """The label with most children, the first of several, and their number; `("", 0)` if none has any."""
        counts = [len(children) for children in self._children]
        most = max(counts, default=0)
        return (self.names[counts.index(most)], most) if most else ("", 0)

    def as_json(self) -> dict[str, Any]:
        """The tree as JSON values: `{"names": [...], "parents": [...]}`; several parents are a list of numbers."""
        parents = [list(each) if len(each) > 1 else next(iter(each), _ROOT) for each in self.parents]
        return {"names": list(self.names), "parents": parents}

    def save(self, path: Path | str) -> None:
        """Writes the tree as JSON; see `as_json`."""
        Path(path).write_text(json.dumps(self.as_json(), ensure_ascii=False, indent=0) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: Path | str) -> LabelTree:
        """Reads what `save` wrote.

        Raises:
            ValueError: The file is not such JSON, or its tree is not valid.
        """
        try:
            content = json.loads(Path(path).read_text(encoding="utf-8"))
        except (UnicodeDecodeError, json.JSONDecodeError) as error:
            raise _no_tree(path, error) from error
        return cls.of_json(content, path)

    @classmethod
    def of_json(cls, content: Any, where: Path | str) -> LabelTree:
        """Reads what `as_json` returned.

        Args:
            content: JSON values.
            where: What holds them, for messages.

        Raises:
            ValueError: It is something else, or its tree is not valid.
        """
        try:
            names, parents = _columns(content)
        except (KeyError, TypeError) as error:
            raise _no_tree(where, error) from error
        return cls(names, parents)

    @cached_property
    def _children(self) -> tuple[list[int], ...]:
        children: tuple[list[int], ...] = tuple([] for _ in self.names)
        for label, parents in enumerate(self.parents):
            for parent in parents:
                children[parent].append(label)
        return children

    @cached_property
    def _parents_first(self) -> list[int]:
        """All labels, each behind its parents, but those in a circle of parents and below it (Kahn 1962)."""
        missing = [len(parents) for parents in self.parents]
        order = [label for label, count in enumerate(missing) if not count]
        for label in order:  # which grows
            for child in self._children[label]:
                missing[child] -= 1
                if not missing[child]:
                    order.append(child)
        return order

    def _circle(self) -> str:
        """Names a whole circle of parents: `"a" -> "b" -> "a"`, each followed by a label that contains it."""
        outside = set(self._parents_first)
        label = next(label for label in range(len(self.names)) if label not in outside)
        path: dict[int, None] = {}
        while label not in path:
            path[label] = None
            label = next(parent for parent in self.parents[label] if parent not in outside)
        steps = list(path)
        circle = [*steps[steps.index(label) :], label]
        return " -> ".join(f'"{self.names[each]}"' for each in circle)

    def _check_names(self) -> None:
        seen: set[str] = set()
        for name in self.names:
            if name in seen:
                raise ValueError(f"label tree: the name {name!r} occurs twice; give every label its own name")
            seen.add(name)

    def _check_range(self) -> None:
        for name, parents in zip(self.names, self.parents, strict=True):
            for parent in parents:
                if not 0 <= parent < len(self.names):
                    raise ValueError(
                        f"label tree: the parent of {name!r} is {parent}; give -1 for a root or 0 to "
                        f"{len(self.names) - 1}"
                    )


def _no_tree(where: Path | str, error: Exception) -> ValueError:
    return ValueError(
        f'{where} is not a label tree: {error!r}; it holds {{"names": [text, ...], "parents": [number, ...]}}, a list '
        "of numbers for a label in several others"
    )


def _each_once(parents: int | Sequence[int]) -> tuple[int, ...]:
    if isinstance(parents, Sequence):
        return tuple(dict.fromkeys(map(operator.index, parents)))
    return () if parents == _ROOT else (operator.index(parents),)


def _columns(content: Any) -> tuple[list[str], list[int | list[int]]]:
    names, parents = content["names"], content["parents"]
    numbers = [number for each in parents for number in (each if isinstance(each, list) else [each])]
    for value, kind in [(name, str) for name in names] + [(number, int) for number in numbers]:
        if not isinstance(value, kind):
            raise TypeError(f"{value!r} is not of type {kind.__name__}")
    return names, parents
