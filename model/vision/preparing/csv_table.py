"""A CSV table of pictures and labels.

    image,label,confidence,split
    photos/1.jpg,dog|outdoors,0.9|0.6,train
    photos/2.jpg,cat,1,heldout

The first line names the columns, in any order; `image` and `label` must be there, others than these are ignored:

    image       path of the file, from the table's folder unless it is absolute; `archive.tar#member` as well
    label       name of a label, or several, divided by `|`; rows of the same image add labels
    confidence  of each label, from 0 to 1; default 1
    split       train or heldout (val, valid, validation and test are heldout); default: divided by `--heldout`
    parent      of each label, the label that contains it; empty for a root
    id          name of the picture in reports; default: `image`

Quotes as in RFC 4180: only around a whole field, doubled within it, and closed on the same line.
"""

from __future__ import annotations

import csv
import difflib
import os
import posixpath
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from downpour.model.vision.labels import LabelTree
from downpour.model.vision.preparing.items import HELDOUT, TRAIN, Item

_HOW_TO_WRITE = "give every field its comma, and quotes to one that holds a comma"
_SEPARATOR = "|"
_NEEDED = ("image", "label")
_COLUMNS = (*_NEEDED, "confidence", "split", "parent", "id")
_SPLITS = {
    "": "",
    "train": TRAIN,
    "training": TRAIN,
    **dict.fromkeys(("heldout", "val", "valid", "validation", "test"), HELDOUT),
}


@dataclass
class _Picture:
    """What the rows of an image say of it, and the number of the line of the first."""

    name: str
    line: int
    split: str
    labels: dict[str, tuple[float, int]] = field(default_factory=dict)  # confidence, line


class CsvTable:
    """Lists the pictures of a table; see the module.

    Args:
        path: The table.
        tree: File of a label tree (`labels.json`); with it, other labels are refused, and no column `parent` is read.

    Raises:
        ValueError: The table or the tree is not there.
    """

    def __init__(self, path: Path, tree: str | None = None) -> None:
        for file in (path, Path(tree or path)):
            if not file.is_file():
                raise ValueError(f"{file} is not a file; give a CSV file with the columns {', '.join(_COLUMNS)}")
        self._path = path
        self._tree = LabelTree.load(tree) if tree else None
        self._parents: dict[str, tuple[str, int]] = {}

    @property
    def skipped(self) -> dict[str, str]:
        """Nothing: what is wrong with a table is refused."""
        return {}

    @cached_property
    def tree(self) -> LabelTree:
        """The given tree, or the labels of the table, sorted, with their parents.

        Raises:
            ValueError: See `items`; or labels contain each other.
        """
        pictures = self._pictures
        if self._tree is not None:
            return self._tree
        named = {label for picture in pictures.values() for label in picture.labels}
        parents = {label: parent for label, (parent, _) in self._parents.items() if parent}
        names = sorted(named | parents.keys() | set(parents.values()))
        index = {name: label for label, name in enumerate(names)}
        return LabelTree(tuple(names), tuple(index[parents[name]] if name in parents else -1 for name in names))

    def items(self) -> Iterator[Item]:
        """See `Importer.items`; in the order of the table.

        Raises:
            ValueError: A column is missing, a row has too many or too few fields, a stray quote, an unknown label or
                split, a confidence that is none; a label, an id or a split contradicts an earlier line.
        """
        index = {name: label for label, name in enumerate(self.tree.names)}
        for image, picture in self._pictures.items():
            path = os.path.join(self._path.parent, image)
            labels = tuple(index[label] for label in picture.labels)
            confidences = tuple(confidence for confidence, _ in picture.labels.values())
            yield Item(picture.name, path, labels, picture.split, confidences)

    @cached_property
    def _pictures(self) -> dict[str, _Picture]:
        """By path of the image."""
        found: dict[str, _Picture] = {}
        images: dict[str, str] = {}  # by id
        for line, row in self._rows():
            image = posixpath.normpath(row["image"]) if row["image"] else ""
            if not image:
                raise self._wrong(line, "the image is empty")
            name = row.get("id") or image
            if images.setdefault(name, image) != image:
                raise self._wrong(
                    line,
                    f"id {name!r} is of {image} here and of {images[name]} in line {found[images[name]].line}; "
                    "give every image its own",
                )
            self._add(found, image, name, line, row)
        return found

    def _add(self, found: dict[str, _Picture], image: str, name: str, line: int, row: dict[str, str]) -> None:
        given = row.get("split", "").lower()
        if given not in _SPLITS:
            raise self._wrong(line, f"split is {given!r}; give {', '.join(filter(None, _SPLITS))}, or nothing")
        picture = found.setdefault(image, _Picture(name, line, _SPLITS[given]))
        if (picture.name, picture.split) != (name, _SPLITS[given]):
            what = "split" if picture.name == name else "id"
            raise self._wrong(
                line, f"{image} has another {what} than in line {picture.line}; give every row of it the same"
            )
        labels = [label.strip() for label in row["label"].split(_SEPARATOR)]
        confidences = self._confidences(line, row.get("confidence", ""), len(labels))
        for label, confidence in zip(labels, confidences, strict=True):
            self._check_label(line, label)
            if label in picture.labels:
                raise self._wrong(line, f"{image} has the label {label!r} in line {picture.labels[label][1]}, too")
            picture.labels[label] = (confidence, line)
        self._note_parents(line, labels, row.get("parent"))

    def _check_label(self, line: int, label: str) -> None:
        if not label:
            raise self._wrong(line, "a label is empty")
        if self._tree is not None and label not in self._known:
            near = difflib.get_close_matches(label, self._known, 1)
            hint = f"; did you mean {near[0]!r}?" if near else "; correct it, or add it to the tree"
            raise self._wrong(line, f"label {label!r} is not in the tree of {len(self._known)} labels{hint}")

    @cached_property
    def _known(self) -> frozenset[str]:
        return frozenset(self._tree.names if self._tree else ())

    def _confidences(self, line: int, text: str, number: int) -> Sequence[float]:
        if not text:
            return [1.0] * number
        try:
            found = [float(each) for each in text.split(_SEPARATOR)]
        except ValueError:
            found = []
        if len(found) != number or not all(0 <= each <= 1 for each in found):
            raise self._wrong(line, f"confidence is {text!r}; give a number from 0 to 1 for each of {number} labels")
        return found

    def _note_parents(self, line: int, labels: Sequence[str], text: str | None) -> None:
        if text is None or self._tree is not None:
            return
        parents = [parent.strip() for parent in text.split(_SEPARATOR)]
        if len(parents) != len(labels):
            raise self._wrong(line, f"parent is {text!r}; give one for each of {len(labels)} labels, empty for a root")
        for label, parent in zip(labels, parents, strict=True):
            before, where = self._parents.setdefault(label, (parent, line))
            if before != parent:
                raise self._wrong(
                    line, f"the parent of {label!r} is {parent!r} here and {before!r} in line {where}; give one"
                )

    def _rows(self) -> Iterator[tuple[int, dict[str, str]]]:
        """Number of the line, and fields by column, of every row that is not empty."""
        columns: list[str] = []
        for line, fields in self._lines():
            if not columns:
                columns = [name.strip().lower() for name in fields]
                self._check_columns(line, columns)
            elif len(fields) != len(columns):
                raise self._wrong(
                    line, f"{len(fields)} fields, but the table has {len(columns)} columns; {_HOW_TO_WRITE}"
                )
            else:
                yield line, {name: each.strip() for name, each in zip(columns, fields, strict=True)}
        if not columns:
            raise ValueError(f"{self._path} is empty; the first line names columns: {', '.join(_COLUMNS)}")

    def _check_columns(self, line: int, columns: list[str]) -> None:
        missing = [name for name in _NEEDED if name not in columns]
        if missing or len(set(columns)) < len(columns):
            wrong = f"column {missing[0]!r} is missing" if missing else "a column occurs twice"
            raise self._wrong(line, f"{wrong}; the columns are {', '.join(columns)}, and may be {', '.join(_COLUMNS)}")

    def _lines(self) -> Iterator[tuple[int, list[str]]]:
        """Number and fields of every line that is not empty; each is parsed by itself, so that a number is right."""
        with open(self._path, encoding="utf-8-sig", newline="") as file:
            try:
                for number, text in enumerate(file, start=1):
                    if text.strip():
                        yield number, self._fields(number, text)
            except UnicodeDecodeError as error:
                raise ValueError(f"{self._path} is not UTF-8 ({error.reason}); save it as UTF-8") from error

    def _fields(self, number: int, text: str) -> list[str]:
        try:
            (fields,) = csv.reader([text], strict=True)
        except csv.Error as error:
            raise self._wrong(number, f"a stray quote ({error}); close it, or take it out") from error
        # A field that holds a quote was quoted, so the line has at least its two, and two for each within it.
        within = sum(each.count('"') for each in fields)
        if text.count('"') < 2 * within + 2 * sum('"' in each for each in fields):
            raise self._wrong(number, "a stray quote; put quotes around the whole field, and double those within it")
        return fields

    def _wrong(self, line: int, what: str) -> ValueError:
        return ValueError(f"{self._path}, line {line}: {what}")
