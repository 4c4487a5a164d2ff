"""Writes one file of records out of the pictures that a task lists, and the facts of what went in.

A task is a JSON file, so that a process on any machine that sees the same folders can do it, a second time as well: a
task whose facts are there is done. Imports neither TensorFlow nor anything that starts processes.
"""

from __future__ import annotations

import base64
import json
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from downpour import files
from downpour.model.vision.preparing import pictures
from downpour.model.vision.preparing.items import Item, read_bytes
from downpour.model.vision.records import LabelledImage, write_records

THUMBNAIL = 120  # pixels of the longer side
_DONE = ".done.json"


@dataclass(frozen=True)
class Task:
    """What one process writes.

    Attributes:
        records: The file of records to write.
        items: The pictures, in their order.
        max_side: See `pictures.examine`.
        num_samples: Number of thumbnails for the page.
    """

    records: str
    items: tuple[Item, ...]
    max_side: int
    num_samples: int

    def save(self, path: Path) -> None:
        """Writes the task as JSON."""
        files.write(path, json.dumps(asdict(self)))

    @classmethod
    def load(cls, path: Path) -> Task:
        """Reads what `save` wrote."""
        content = json.loads(path.read_text())
        items = (
            Item(**(item | {key: tuple(item[key]) for key in ("labels", "confidences")})) for item in content["items"]
        )
        return cls(**(content | {"items": tuple(items)}))


@dataclass
class Facts:
    """What was found while files were written.

    Attributes:
        num_written: Records.
        num_bytes: Of the encoded pictures.
        formats: Number of pictures by the format of the source, those that were written.
        sides: Their number by the longer side of the source, in pixels.
        labels: Their number by their labels, without ancestors.
        skipped: Name, kind and reason of each picture that was left out.
        changed: Name and kinds of each that is not ordinary (`pictures.KINDS`).
        samples: Name, labels and thumbnail (JPEG, base64) of a few.
    """

    num_written: int = 0
    num_bytes: int = 0
    formats: Counter[str] = field(default_factory=Counter)
    sides: Counter[int] = field(default_factory=Counter)
    labels: Counter[tuple[int, ...]] = field(default_factory=Counter)
    skipped: list[tuple[str, str, str]] = field(default_factory=list)
    changed: list[tuple[str, list[str]]] = field(default_factory=list)
    samples: list[tuple[str, list[int], str]] = field(default_factory=list)

    def add(self, other: Facts) -> None:
        """Adds those of another file."""
        self.num_written += other.num_written
        self.num_bytes += other.num_bytes
        self.formats += other.formats
        self.sides += other.sides
        self.labels += other.labels
        self.skipped += other.skipped
        self.changed += other.changed
        self.samples += other.samples

    def to_json(self) -> str:
        """For `from_json`."""
        return json.dumps(self.__dict__ | {"sides": sorted(self.sides.items()), "labels": sorted(self.labels.items())})

    @classmethod
    def from_json(cls, text: str) -> Facts:
        """Reads what `to_json` wrote."""
        found: dict[str, Any] = json.loads(text)
        found["formats"] = Counter(found["formats"])
        found["sides"] = Counter(dict(found["sides"]))
        found["labels"] = Counter({tuple(labels): count for labels, count in found["labels"]})
        found["skipped"] = [tuple(each) for each in found["skipped"]]
        return cls(**found)


def facts_of(task: Path) -> Facts | None:
    """The facts of a task that is done; None before."""
    try:
        return Facts.from_json(_done(task).read_text())
    except FileNotFoundError:
        return None


def write(task: str) -> str:
    """Does the task of a file, unless it is done; returns `task`.

    Raises:
        OSError: A file cannot be written.
        ValueError: Pillow is not installed.
    """
    path = Path(task)
    if not _done(path).exists():
        pictures.check_installed()
        work, facts = Task.load(path), Facts()
        write_records(Path(work.records), _images(work, facts))
        files.write(_done(path), facts.to_json())
    return task


def _done(task: Path) -> Path:
    return task.with_suffix(_DONE)


def _images(task: Task, facts: Facts) -> Iterator[LabelledImage]:
    for item in task.items:
        try:
            image = _image(item, task, facts)
        except pictures.Unusable as error:
            facts.skipped.append((item.name, error.kind, str(error)))
        else:
            yield image


def _image(item: Item, task: Task, facts: Facts) -> LabelledImage:
    try:
        data = read_bytes(item.path)
    except OSError as error:
        raise pictures.Unusable("missing", error.strerror or str(error)) from error
    found = pictures.examine(data, os.path.basename(item.path), task.max_side)
    if found.kinds:
        facts.changed.append((item.name, list(found.kinds)))
    facts.num_written += 1
    facts.num_bytes += len(found.encoded)
    facts.formats[found.format] += 1
    facts.sides[max(found.size)] += 1
    facts.labels[tuple(sorted(item.labels))] += 1
    if len(facts.samples) < task.num_samples:
        thumbnail = base64.b64encode(pictures.thumbnail(found.encoded, THUMBNAIL)).decode()
        facts.samples.append((item.name, list(item.labels), thumbnail))
    return LabelledImage(found.encoded, tuple(item.labels), item.name)
