"""What is to be written: every picture that an importer lists, checked and divided, before any of them is decoded."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path

from downpour.model.vision.labels import LabelTree
from downpour.model.vision.preparing import content, dividing
from downpour.model.vision.preparing.items import HELDOUT, TRAIN, Importer, Item
from downpour.model.vision.preparing.shards import Task

SPLITS = (TRAIN, HELDOUT)
# Why a picture is left out before it is opened, beside the reasons of `pictures.KINDS`.
NOT_TAKEN, NO_LABEL, LEAK = "not taken", "no label", "leak"
_NUM_SAMPLES = 48
_FORMAT = 1  # of what is written: counted up when the same pictures would give other files


@dataclass(frozen=True)
class Settings:
    """What decides which files are written of the same pictures.

    Attributes:
        heldout: Fraction that is held out of the pictures that their importer does not divide.
        seed: Of the division and the order.
        images_per_file: Most pictures in a file of records.
        max_side: Limit of a picture's longer side in pixels, above which it is shrunk; 0 for none.
        min_confidence: Labels below it are dropped.
        on_leak: What to do with a training picture that is held out, too: `refuse` the set, or `remove` the picture.

    Raises:
        ValueError: A value is out of its range.
    """

    heldout: float = 0.1
    seed: int = 0
    images_per_file: int = 512
    max_side: int = 0
    min_confidence: float = 0.0
    on_leak: str = "refuse"

    def __post_init__(self) -> None:
        for name in ("heldout", "min_confidence"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}; give a number from 0 to 1")
        if self.images_per_file < 1:
            raise ValueError(f"images_per_file is {self.images_per_file}; give a whole number of at least 1")
        if self.max_side < 0:
            raise ValueError(f"max_side is {self.max_side}; give a number of pixels, or 0 to keep all sizes")
        if self.on_leak not in dividing.ON_LEAK:
            raise ValueError(f"on_leak is {self.on_leak!r}; give one of {', '.join(dividing.ON_LEAK)}")


@dataclass(frozen=True)
class Plan:
    """The pictures to write, in order.

    Attributes:
        tree: Of their labels.
        items: Training and held-out ones, shuffled; paths are absolute.
        skipped: Name, kind and reason of those that are left out already.
        settings: As given.
        extents: Where the bytes of each picture are, by its name.
    """

    tree: LabelTree
    items: tuple[Item, ...]
    skipped: tuple[tuple[str, str, str], ...]
    settings: Settings
    extents: dict[str, content.Extent]

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of settings, labels, names and sizes: equal for a copy of the pictures in another place."""
        sizes = [(item.name, item.labels, item.split, self.extents[item.name].size) for item in self.items]
        return _digest([_FORMAT, asdict(self.settings), self.tree.names, self.tree.parents, sizes, self.skipped])

    @cached_property
    def state(self) -> str:
        """The fingerprint, with paths and the times of the last changes: equal while nothing was touched."""
        return _digest([self.fingerprint, [(item.path, self.extents[item.name].changed_ns) for item in self.items]])

    def tasks(self, folder: Path) -> Iterator[Task]:
        """One task for each file of records, which is to be written to `folder`."""
        size = self.settings.images_per_file
        for split in SPLITS:
            items = tuple(item for item in self.items if item.split == split)
            total = -(-len(items) // size)
            samples = -(-_NUM_SAMPLES // total) if split == TRAIN else 0
            for number in range(total):
                path = folder / f"{split}-{number:05d}-of-{total:05d}.tfrecord"
                first, end = (len(items) * edge // total for edge in (number, number + 1))
                yield Task(str(path), items[first:end], self.settings.max_side, samples)


def make(importer: Importer, settings: Settings) -> Plan:
    """Lists an importer's pictures, looks for their files, and divides them.

    Raises:
        ValueError: There are no pictures, a name occurs twice, a label is not in the tree, a split is empty, training
            pictures are held out, too; or see `Importer.items`.
    """
    tree, skipped = importer.tree, list[tuple[str, str, str]]()
    items = _usable(importer, settings, skipped)
    skipped += [(name, NOT_TAKEN, why) for name, why in importer.skipped.items()]
    items, extents = _found(items, skipped)
    if not items:
        first = "".join(f"; the first of {len(skipped)} left out is {name}: {why}" for name, _, why in skipped[:1])
        raise ValueError(f"no pictures{first}")
    copies = content.same_content(extents)
    divided = dividing.divide(items, copies, settings.heldout, settings.seed)
    leaks = dividing.leaks(divided, copies)
    if settings.on_leak == "refuse":
        dividing.refuse(leaks)
    skipped += [(name, LEAK, f"the same file as the held-out {other}") for name, other in leaks.items()]
    kept = tuple(item for item in divided if item.name not in leaks)
    _check_splits(kept, settings)
    return Plan(tree, kept, tuple(sorted(skipped)), settings, extents)


def _usable(importer: Importer, settings: Settings, skipped: list[tuple[str, str, str]]) -> list[Item]:
    """The pictures with labels that are certain enough."""
    kept, paths, num_labels = list[Item](), dict[str, str](), len(importer.tree)
    for item in importer.items():
        if item.name in paths:
            raise ValueError(f"two pictures are called {item.name}: {paths[item.name]} and {item.path}; rename one")
        paths[item.name] = item.path
        for label in item.labels:
            if not 0 <= label < num_labels:
                raise ValueError(f"{item.name}: label {label} is not in the tree of {num_labels} labels")
        if item.split not in ("", *SPLITS):
            raise ValueError(f"{item.name}: split is {item.split!r}; give {TRAIN} or {HELDOUT}")
        confidences = item.confidences or (1.0,) * len(item.labels)
        pairs = zip(item.labels, confidences, strict=True)
        labels = tuple(label for label, confidence in pairs if confidence >= settings.min_confidence)
        if labels:
            kept.append(replace(item, labels=labels, confidences=(), path=os.path.abspath(item.path)))
        else:
            skipped.append((item.name, NO_LABEL, f"no label of confidence {settings.min_confidence:g} or more"))
    return kept


def _found(items: list[Item], skipped: list[tuple[str, str, str]]) -> tuple[list[Item], dict[str, content.Extent]]:
    """Those whose files are there."""
    extents = {}
    for item in items:
        try:
            extents[item.name] = content.extent(item.path)
        except OSError as error:
            skipped.append((item.name, "missing", f"{item.path}: {error.strerror or error}"))
    return [item for item in items if item.name in extents], extents


def _check_splits(items: tuple[Item, ...], settings: Settings) -> None:
    for split in SPLITS:
        if not any(item.split == split for item in items):
            raise ValueError(
                f"none of {len(items)} pictures is in {split!r} with --heldout={settings.heldout:g}; give another "
                "fraction or --seed, or more pictures"
            )


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()
