"""A tree of folders as a set of pictures: folders are labels, folders in folders their children.

    PATH/animals/dog/1.jpg         label `animals/dog`, within `animals`
    PATH/animals/cat/2.jpg

If all folders in PATH have the names of splits, they are the splits, and labels begin below them, as torchvision, Keras
and the ImageFolder of TensorFlow Datasets have it:

    PATH/train/dog/1.jpg           training; also `training`
    PATH/val/dog/2.jpg             held out; also `heldout`, `valid`, `validation`, `test`

Every file is a picture until it is opened, whatever its name ends with; one whose name begins with a dot is left out.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

from downpour.model.vision.labels import LabelTree
from downpour.model.vision.preparing.items import HELDOUT, TRAIN, Item

# Of several held-out folders the first of this order is taken.
_HELDOUT_FOLDERS = ("heldout", "val", "valid", "validation", "test")
_TRAIN_FOLDERS = ("train", "training")
_TFDS = ("features.json", "dataset_info.json")
_MOST_NAMED = 5


class Folder:
    """Lists a tree of folders; see the module.

    Args:
        path: The folder.

    Raises:
        ValueError: It is no folder.
    """

    def __init__(self, path: Path) -> None:
        if not path.is_dir():
            raise ValueError(f"{path} is not a folder; give a folder with a sub-folder of pictures for each label")
        self._path = path
        self._skipped: dict[str, str] = {}

    @property
    def skipped(self) -> dict[str, str]:
        """See `Importer.skipped`."""
        return self._skipped

    @cached_property
    def tree(self) -> LabelTree:
        """A label for each folder, called by its path from the top, `animals/dog`.

        Raises:
            ValueError: There is no label, or one without a file, or one that no training picture has.
        """
        names = sorted({name for root in self._splits for name in self._labels[root]})
        if not names:
            raise ValueError(
                f"{self._path} has no folder with pictures; folders are the labels: {self._path}/LABEL/picture.jpg"
            )
        index = {name: label for label, name in enumerate(names)}
        return LabelTree(tuple(names), tuple(index.get(name.rpartition("/")[0], -1) for name in names))

    def items(self) -> Iterator[Item]:
        """See `Importer.items`."""
        index = {name: label for label, name in enumerate(self.tree.names)}
        for root, split in self._splits.items():
            for path in self._files[root]:
                label = _readable(os.path.dirname(os.path.relpath(path, root)))
                name = _readable(os.path.relpath(path, self._path))
                if os.path.basename(path).startswith("."):
                    self._skipped[name] = "its name begins with a dot"
                elif not label:
                    self._skipped[name] = "in no label's folder"
                else:
                    yield Item(name, path, (index[label],), split)

    @cached_property
    def _splits(self) -> dict[str, str]:
        """The folders below which labels begin, and their splits; one folder without a split if none is named so."""
        found = sorted(entry.name for entry in os.scandir(self._path) if entry.is_dir() and entry.name[0] != ".")
        self._refuse_records()
        train = [name for name in found if name.lower() in _TRAIN_FOLDERS]
        heldout = sorted(
            (name for name in found if name.lower() in _HELDOUT_FOLDERS),
            key=lambda name: _HELDOUT_FOLDERS.index(name.lower()),
        )
        if len(train) != 1 or len(heldout) + 1 != len(found):
            return {str(self._path): ""}
        for name in heldout[1:]:
            self._skipped[f"{name}/"] = f"{heldout[0]}/ is held out; prepare this folder by itself"
        named = {train[0]: TRAIN if heldout else "", **dict.fromkeys(heldout[:1], HELDOUT)}
        return {str(self._path / name): split for name, split in named.items()}

    def _refuse_records(self) -> None:
        records = next(self._path.glob("*.tfrecord*"), None)
        if records is not None or any((self._path / name).is_file() for name in _TFDS):
            raise ValueError(
                f"{self._path} holds records of TensorFlow Datasets ({(records or self._path / _TFDS[0]).name}), whose "
                "features only that package decodes; write the pictures to SPLIT/LABEL/NAME.jpg (its ImageFolder "
                "layout), or give the data set to a Stream (docs/data.md)"
            )

    @cached_property
    def _files(self) -> dict[str, list[str]]:
        """All files below each of `_splits`, sorted."""
        return {root: list(_walk(root, ())) for root in self._splits}

    @cached_property
    def _labels(self) -> dict[str, set[str]]:
        """Names of the folders below each of `_splits`; none without a file in it or below it."""
        found = {}
        for root, split in self._splits.items():
            own = (os.path.relpath(os.path.dirname(path), root) for path in self._files[root] if _counts(path))
            filled = {_readable(above) for path in set(own) for above in _with_parents(path)}
            folders = {_readable(os.path.relpath(path, root)) for path in _folders(root, ())}
            _refuse_empty(root, folders - filled)
            found[root] = filled
            if split == HELDOUT:
                self._refuse_unknown(root, filled - found[next(iter(self._splits))])
        return found

    def _refuse_unknown(self, root: str, unknown: set[str]) -> None:
        if unknown:
            raise ValueError(
                f"{root} has labels that training has not: {_listed(unknown)}; a label that is never learned cannot be "
                "scored: rename or remove these folders"
            )


def _refuse_empty(root: str, empty: set[str]) -> None:
    if empty:
        raise ValueError(
            f"folders without a picture in {root}: {_listed(empty)}; a label needs pictures: add some, or remove these"
        )


def _listed(names: set[str]) -> str:
    shown = ", ".join(sorted(names)[:_MOST_NAMED])
    return f"{shown} and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else shown


def _counts(path: str) -> bool:
    return not os.path.basename(path).startswith(".")


def _with_parents(path: str) -> Iterator[str]:
    while path and path != ".":
        yield path
        path = os.path.dirname(path)


def _readable(path: str) -> str:
    """A path in UTF-8; bytes that are none are written as hexadecimal numbers."""
    return os.fsencode(path).decode(errors="backslashreplace")


def _entries(folder: str, above: tuple[str, ...]) -> tuple[list[str], list[str], tuple[str, ...]]:
    """Folders and files of a folder, sorted, without hidden folders; and the real paths of it and of those above.

    Raises:
        ValueError: A link leads back to a folder above.
    """
    real = os.path.realpath(folder)
    if real in above:
        raise ValueError(f"{folder} is a link to a folder that it lies in ({real}); remove the link")
    with os.scandir(folder) as entries:
        found = sorted(entries, key=lambda entry: entry.name)
    folders = [entry.path for entry in found if entry.is_dir() and entry.name[0] != "."]
    return folders, [entry.path for entry in found if not entry.is_dir()], (*above, real)


def _walk(folder: str, above: tuple[str, ...]) -> Iterator[str]:
    """All files below a folder; links are followed."""
    folders, own, above = _entries(folder, above)
    yield from own
    for each in folders:
        yield from _walk(each, above)


def _folders(folder: str, above: tuple[str, ...]) -> Iterator[str]:
    """All folders below a folder."""
    folders, _, above = _entries(folder, above)
    for each in folders:
        yield each
        yield from _folders(each, above)
