"""ImageNet (ILSVRC 2012, and any folder of synsets) as it is published: tar files or folders, and a list of synsets.

The folder holds

    train/n01440764/*.JPEG      training pictures; or train/n01440764.tar; or ILSVRC2012_img_train.tar, of such files
    val/*.JPEG                  validation pictures, held out; or ILSVRC2012_img_val.tar; or in folders as in `train`
    synset_words.txt            `n01440764 tench, Tinca tinca`; or LOC_synset_mapping.txt, the same
    one of these, unless validation pictures are in folders:
      LOC_val_solution.csv                         ImageId,PredictionString: `ILSVRC2012_val_00048981,n03995372 85 ...`
      val.txt                                      `ILSVRC2012_val_00000001.JPEG 65`: a line of synset_words.txt, from 0
      imagenet_2012_validation_synset_labels.txt   `n01751748`: one a picture, in the order of names
      ILSVRC2012_validation_ground_truth.txt       `490`: the same, a number of map_clsloc.txt, which must be there, too
    wordnet.is_a.txt            `n00001740 n00001930`: a parent and a child; or WordNet 3.0's data.noun; optional
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

from downpour.model.vision.labels import LabelTree
from downpour.model.vision.preparing import wordnet
from downpour.model.vision.preparing.items import HELDOUT, TRAIN, Item, members
from downpour.model.vision.preparing.published import rows, unique_names

_TRAINING = ("train", "train.tar", "ILSVRC2012_img_train.tar")
_VALIDATION = ("val", "validation", "val.tar", "ILSVRC2012_img_val.tar")
_WORDS = ("synset_words.txt", "LOC_synset_mapping.txt")
_SOLUTION, _NUMBERED = "LOC_val_solution.csv", "ILSVRC2012_validation_ground_truth.txt"
_TRUTHS = (_SOLUTION, "val.txt", "imagenet_2012_validation_synset_labels.txt", _NUMBERED)
_TREES = ("wordnet.is_a.txt", "data.noun")
_MAPPING = "map_clsloc.txt"
_VALIDATION_NAME = "ILSVRC2012_val_{:08}"
_IN_PATH = re.compile(rf"[/#]({wordnet.SYNSET.pattern})[/#._]")


class ImageNet:
    """The importer of ImageNet.

    Labels are the synsets of the list, in its order, then, with a tree, all their ancestors; synsets that the list
    lacks are an error. A label is named by the first of its words ("tench"), with its synset where several share it.

    Args:
        folder: See the module.
        tree: `data.noun` or a list of pairs, instead of one in the folder; without either, all labels are roots.

    Raises:
        ValueError: A file is missing or not of the format: which, where (line number), what is accepted.
    """

    def __init__(self, folder: Path | str, *, tree: Path | str | None = None) -> None:
        self.skipped: dict[str, str] = {}
        self._folder = Path(folder)
        self._tree = Path(tree) if tree else self._first(_TREES)
        words = self._first(_WORDS)
        if not words:
            raise ValueError(f"{folder} has no {' or '.join(_WORDS)}, which lists the synsets")
        self._words = words

    @cached_property
    def tree(self) -> LabelTree:
        """See the class; which label contains which as WordNet's hypernyms say."""
        names = dict(self._synsets)
        if not self._tree:
            return LabelTree(unique_names(names), [-1] * len(names))
        parents, words = wordnet.ancestors(self._tree, names)
        names |= {synset: words.get(synset, synset) for synset in parents if synset not in names}
        index = {synset: label for label, synset in enumerate(names)}
        try:
            return LabelTree(unique_names(names), [[index[parent] for parent in parents[synset]] for synset in names])
        except ValueError as error:
            raise ValueError(f"{self._tree}: {error}") from error

    def items(self) -> Iterator[Item]:
        """See `Importer.items`; folders, tar files and pictures in the order of their names."""
        self.skipped.clear()
        training, validation = self._first(_TRAINING), self._first(_VALIDATION)
        if not training:
            raise ValueError(f"{self._folder} has none of {', '.join(_TRAINING)}")
        for path in _pictures(training):
            yield from self._item(path, "", TRAIN if validation else "")
        if validation:
            truth = self._truth()
            for path in _pictures(validation):
                yield from self._item(path, truth.get(Path(path.rpartition("#")[2]).stem, ""), HELDOUT)

    def _item(self, path: str, synset: str, split: str) -> Iterator[Item]:
        """The picture of a path that names a synset, or of a synset that is known from elsewhere."""
        name = Path(path).relative_to(self._folder).as_posix()
        named = _IN_PATH.search(f"/{name}")
        synset = named[1] if named else synset
        if not synset:
            self.skipped[name] = "of no synset: by folder, tar file or name, or in the list of validation labels"
        elif synset not in self._labels:
            raise ValueError(f"{path}: synset {synset} is not in {self._words}")
        else:
            yield Item(name, path, (self._labels[synset],), split)

    def _truth(self) -> dict[str, str]:
        """Synset of validation pictures by name, without its ending; empty if there is no such list."""
        path = self._first(_TRUTHS)
        if not path:
            return {}
        if path.name == _SOLUTION:
            solution = rows(path, ("ImageId", "PredictionString"))
            return {image: self._known(text[:9], path, line) for line, (image, text) in solution}
        found, numbers = {}, self._numbers(path)
        for line, text in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            *names, label = text.split() or [""]
            image = Path(names[0]).stem if names else _VALIDATION_NAME.format(line)
            found[image] = self._known(numbers.get(label, label), path, line)
        return found

    def _numbers(self, path: Path) -> dict[str, str]:
        """Synsets by the numbers that a list of validation labels has for them."""
        if path.name != _NUMBERED:
            return {str(number): synset for number, synset in enumerate(self._synsets)}
        mapping = path.with_name(_MAPPING)
        if not mapping.is_file():
            raise ValueError(f"{path} has numbers of {mapping}, which is missing; those of {self._words.name} differ")
        fields = [line.split() for line in mapping.read_text(encoding="utf-8").splitlines()]
        return {each[1]: each[0] for each in fields if len(each) > 1}

    def _known(self, synset: str, path: Path, line: int) -> str:
        if synset not in self._labels:
            raise ValueError(f"{path}, line {line}: synset {synset!r} is not in {self._words}")
        return synset

    @cached_property
    def _synsets(self) -> dict[str, str]:
        """The first word of each synset of the list."""
        found: dict[str, str] = {}
        for number, line in enumerate(self._words.read_text(encoding="utf-8").splitlines(), 1):
            synset, _, words = line.partition(" ")
            if not wordnet.SYNSET.fullmatch(synset) or not words:
                raise ValueError(
                    f"{self._words}, line {number}: {line[:80]!r}; give a synset and its words: n01440764 tench"
                )
            if synset in found:
                raise ValueError(f"{self._words}, line {number}: synset {synset} occurs twice")
            found[synset] = words.partition(",")[0].strip()
        return found

    @cached_property
    def _labels(self) -> dict[str, int]:
        return {synset: label for label, synset in enumerate(self._synsets)}

    def _first(self, names: tuple[str, ...]) -> Path | None:
        return next((path for name in names if (path := self._folder / name).exists()), None)


def _pictures(root: Path) -> Iterator[str]:
    """Paths of all files in a folder or tar file and the tar files within it."""
    for folder, folders, names in os.walk(root, followlinks=True):
        folders.sort()
        for name in sorted(names):
            yield from _within(os.path.join(folder, name))
    if root.is_file():
        yield from _within(str(root))


def _within(path: str) -> Iterator[str]:
    if not path.endswith(".tar"):
        yield path
        return
    try:
        found = members(path)
    except OSError as error:
        raise ValueError(str(error)) from error
    for member in found:
        yield from _within(member)
