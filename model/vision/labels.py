"""The label tree: names of the classes, and which class contains which.

Pure Python, no arrays: `data` converts labels and their ancestors to multi-hot rows.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

LABELS_FILE = "labels.json"


@dataclass(frozen=True)
class LabelTree:
    """Names of all labels and the parent of each; a forest, since several labels may be roots.

    Attributes:
        names: Label `i` is called `names[i]`; no name occurs twice.
        parents: Index of the label that contains label `i`, or -1 for a root.

    Raises:
        ValueError: Lengths differ, a name occurs twice, a parent does not exist, or labels contain each other.
    """

    names: tuple[str, ...]
    parents: tuple[int, ...]

    def __post_init__(self) -> None:
        if len(self.names) != len(self.parents):
            raise ValueError(f"label tree: {len(self.names)} names but {len(self.parents)} parents; give one per name")
        self._check_names()
        self._check_range()
        self._check_cycles()

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
        """For each label: itself, its parent, and so on up to its root."""
        return tuple(tuple(self._climb(label)) for label in range(len(self.names)))

    def save(self, path: Path | str) -> None:
        """Writes the tree as JSON: `{"names": [...], "parents": [...]}`."""
        content = {"names": self.names, "parents": self.parents}
        Path(path).write_text(json.dumps(content, ensure_ascii=False, indent=0) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: Path | str) -> LabelTree:
        """Reads what `save` wrote.

        Raises:
            ValueError: The file is not such JSON, or its tree is not valid.
        """
        try:
            content = json.loads(Path(path).read_text(encoding="utf-8"))
            names, parents = _columns(content)
        except (KeyError, TypeError, UnicodeDecodeError, json.JSONDecodeError) as error:
            raise ValueError(
                f'{path} is not a label tree: {error!r}; it holds {{"names": [text, ...], "parents": [number, ...]}}'
            ) from error
        return cls(names, parents)

    def _climb(self, label: int) -> Iterable[int]:
        while label >= 0:
            yield label
            label = self.parents[label]

    def _check_names(self) -> None:
        seen: set[str] = set()
        for name in self.names:
            if name in seen:
                raise ValueError(f"label tree: the name {name!r} occurs twice; give every label its own name")
            seen.add(name)

    def _check_range(self) -> None:
        for name, parent in zip(self.names, self.parents, strict=True):
            if not -1 <= parent < len(self.names):
                raise ValueError(
                    f"label tree: the parent of {name!r} is {parent}; give -1 for a root or 0 to {len(self.names) - 1}"
                )

    def _check_cycles(self) -> None:
        rooted: set[int] = set()
        for label in range(len(self.names)):
            path: list[int] = []
            for step in self._climb(label):
                if step in rooted:
                    break
                if len(path) == len(self.names):
                    raise ValueError(f"label tree: {self.names[label]!r} lies in a circle of parents; make one a root")
                path.append(step)
            rooted.update(path)


def _columns(content: Any) -> tuple[tuple[str, ...], tuple[int, ...]]:
    names, parents = content["names"], content["parents"]
    for value, kind in [(name, str) for name in names] + [(parent, int) for parent in parents]:
        if not isinstance(value, kind):
            raise TypeError(f"{value!r} is not of type {kind.__name__}")
    return tuple(names), tuple(parents)
