"""Open Images (V4 to V7) as it is published: CSV files of labels and images, and a hierarchy in JSON.

The folder holds

    class-descriptions.csv                        LabelName,DisplayName; with or without that line
    bbox_labels_600_hierarchy.json                which label contains which; optional
    train-annotations-human-imagelabels.csv       ImageID,Source,LabelName,Confidence
    train-annotations-machine-imagelabels.csv     the same; optional
    validation-annotations-human-imagelabels.csv  the same for `validation`, optional
    train/000026e7ee790996.jpg                    pictures by ImageID, in a folder of their subset

Names may begin with `oidv7-` and end with `-boxable`, as in some versions.
"""

from __future__ import annotations

import heapq
import itertools
import json
import operator
import os
import re
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

from downpour.model.vision.labels import LabelTree
from downpour.model.vision.preparing.items import HELDOUT, TRAIN, Item
from downpour.model.vision.preparing.published import rows, unique_names

_DESCRIPTIONS = ("LabelName", "DisplayName")
_ANNOTATIONS = ("ImageID", "LabelName", "Confidence")
_IMAGE_ID = re.compile(r"[\w-]+")

_Labels = dict[int, float]  # label -> confidence


class OpenImages:
    """The importer of Open Images.

    A label of confidence 0 (people saw that it is not there) is left out. Where people and a machine have judged the
    same label of a picture, the people are right. Annotation files are read as streams, a picture at a time, so they
    must be in the order of ImageID, as they are published.

    Args:
        folder: See the module.
        heldout: Subsets that are held out, of `validation` and `test`; the others are not read. If there are
            annotations of none of them, the pipeline divides `train`.
        described_only: Whether labels without a description are left out, so that `class-descriptions-boxable.csv`
            selects its 600 labels out of all annotations. They are an error otherwise.

    Raises:
        ValueError: A file is missing or not of the format: which, where (line number), what is accepted.
    """

    def __init__(
        self, folder: Path | str, *, heldout: tuple[str, ...] = ("validation",), described_only: bool = False
    ) -> None:
        self.skipped: dict[str, str] = {}
        self._folder = Path(folder)
        self._heldout = heldout
        self._described_only = described_only
        # Of a full table and one of the boxable labels, the full one.
        found = sorted(self._folder.glob("*class-descriptions*.csv"), key=lambda path: ("boxable" in path.name, path))
        if not found:
            raise ValueError(f"{folder} has no class-descriptions.csv; give a folder with the tables of Open Images")
        self._descriptions = found[0]

    @cached_property
    def tree(self) -> LabelTree:
        """Display names, in the order of their table, and what the `Subcategory` entries of the hierarchy say.

        A `Part` ("wheel" of "car") is not contained in the whole. The top of the hierarchy, "Entity", is left out
        where the table does not describe it. A name that occurs twice has its LabelName in brackets.
        """
        parents: list[list[int]] = [[] for _ in self._index]
        hierarchy = next(iter(sorted(self._folder.glob("*hierarchy*.json"))), None)
        top, containments = _hierarchy(hierarchy) if hierarchy else ("", [])
        for child, parent in containments:
            if child not in self._index:
                raise ValueError(f"{hierarchy}: label {child} is not in {self._descriptions.name}")
            if parent and (parent != top or top in self._index):
                parents[self._index[child]].append(self._index[parent])
        try:
            return LabelTree(unique_names(self._names), parents)
        except ValueError as error:
            raise ValueError(f"{hierarchy or self._descriptions}: {error}") from error

    def items(self) -> Iterator[Item]:
        """See `Importer.items`; pictures in the order of ImageID, subset by subset."""
        self.skipped.clear()
        heldout = [subset for subset in self._heldout if self._annotations(subset)]
        if not self._annotations("train"):
            raise ValueError(f"{self._folder} has no train-annotations-human-imagelabels.csv")
        yield from self._subset("train", TRAIN if heldout else "")
        for subset in heldout:
            yield from self._subset(subset, HELDOUT)

    def _subset(self, subset: str, split: str) -> Iterator[Item]:
        """Its pictures that are there and have a label; machine labels first, so that people's replace them."""
        each_file = [self._pictures(path) for path in self._annotations(subset)]
        merged = heapq.merge(*each_file, key=operator.itemgetter(0))
        for image, judgements in itertools.groupby(merged, key=operator.itemgetter(0)):
            name = f"{subset}/{image}.jpg"
            labels: _Labels = {}
            for _, judged in judgements:
                labels |= judged
            given = {label: confidence for label, confidence in labels.items() if confidence > 0}
            if not given:
                self.skipped[name] = "no label with a confidence above 0"
            elif not os.path.isfile(path := self._folder / name):
                self.skipped[name] = f"its file is missing from {path.parent}"
            else:
                certain = all(confidence == 1 for confidence in given.values())
                yield Item(name, str(path), tuple(given), split, () if certain else tuple(given.values()))

    def _annotations(self, subset: str) -> list[Path]:
        return [
            path
            for kind in ("machine", "human")
            for path in sorted(self._folder.glob(f"*{subset}-annotations-{kind}-imagelabels*.csv"))
        ]

    def _pictures(self, path: Path) -> Iterator[tuple[str, _Labels]]:
        """ImageID and labels of each picture of a file."""
        image, labels = "", dict[int, float]()
        for line, (each, name, confidence) in rows(path, _ANNOTATIONS):
            if each != image:
                if image:
                    yield image, labels
                if each < image or not _IMAGE_ID.fullmatch(each):
                    why = f"comes after {image}; sort the lines" if each < image else "has letters that no ImageID has"
                    raise ValueError(f"{path}, line {line}: ImageID {each!r} {why}")
                image, labels = each, {}
            if name in self._index:
                labels[self._index[name]] = _confidence(confidence, path, line)
            elif not self._described_only:
                raise ValueError(
                    f"{path}, line {line}: label {name} is not in {self._descriptions.name}; give the table of all "
                    "labels, or leave such labels out (described_only)"
                )
        if image:
            yield image, labels

    @cached_property
    def _names(self) -> dict[str, str]:
        names: dict[str, str] = {}
        for line, (identifier, name) in rows(self._descriptions, _DESCRIPTIONS, header=False):
            if identifier in names:
                raise ValueError(f"{self._descriptions}, line {line}: label {identifier} is described twice")
            names[identifier] = name
        return names

    @cached_property
    def _index(self) -> dict[str, int]:
        return {identifier: label for label, identifier in enumerate(self._names)}


def _confidence(text: str, path: Path, line: int) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise ValueError(f"{path}, line {line}: Confidence is {text!r}; give a number from 0 to 1")
    return value


def _hierarchy(path: Path) -> tuple[str, list[tuple[str, str]]]:
    """The top label, and every other with the label that contains it, empty for what is only a part of another."""
    try:
        top = json.loads(path.read_text(encoding="utf-8"))
        return top["LabelName"], list(_below(top))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}, line {error.lineno}: not JSON: {error.msg}") from error
    except (KeyError, TypeError, AttributeError, UnicodeDecodeError) as error:
        raise ValueError(
            f"{path}: not a hierarchy of Open Images: {error!r}; each label is an object with LabelName and, where it "
            "has them, lists Subcategory and Part of such objects"
        ) from error


def _below(node: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for kind in ("Subcategory", "Part"):
        for child in node.get(kind, ()):
            yield child["LabelName"], node["LabelName"] if kind == "Subcategory" else ""
            yield from _below(child)
