"""What an importer says about a set of pictures, before any of them is opened."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Protocol

from downpour.model.vision.labels import LabelTree

TRAIN, HELDOUT = "train", "heldout"


@dataclass(frozen=True)
class Item:
    """A picture as its importer found it.

    Attributes:
        name: Its identity in the set and in reports; unique.
        path: File that holds it; `archive.tar#member` for a member of a tar file.
        labels: Indices of its labels in the tree, ancestors not filled in.
        split: `train` or `heldout`; empty where the pipeline is to divide.
        confidences: Of each label, from 0 to 1; empty where all are certain.
    """

    name: str
    path: str
    labels: tuple[int, ...]
    split: str = ""
    confidences: tuple[float, ...] = field(default=())


class Importer(Protocol):
    """A format of pictures and labels on disk: `folder`, `csv`, `open-images`, `imagenet`."""

    @property
    def tree(self) -> LabelTree:
        """Names of the labels, and which contains which."""
        ...

    @property
    def skipped(self) -> dict[str, str]:
        """What `items` left out by now, by name, and why."""
        ...

    def items(self) -> Iterator[Item]:
        """Yields the pictures in a fixed order; opens tables and directories, never a picture.

        Raises:
            ValueError: A table or folder is not of the format: which, where (line number), what is accepted.
        """
        ...
