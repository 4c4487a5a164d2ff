"""What an evaluation shows beside its scores: pictures with labels, and precision and recall of some classes.

Taken from batches that are scored anyway, so nothing is computed twice, and bounded: `NUM_PICTURES` pictures, chosen by
a fixed seed, so that every evaluation shows the same ones, and counts by class and bucket. It is for models that give
each class a score; pictures are shown of inputs [B, height, width, 1 or 3], or square ones without channels.

Numpy alone. Threads: one. Shapes: `B` examples of a batch, `C` classes.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from downpour.model.data.batches import are_exclusive, has_labelled_images, scored_classes_of
from downpour.model.metrics.precision_recall import Counts, PrecisionRecall
from downpour.proto.chief_pb2 import Illustration
from downpour.worker.evaluator import grid

NUM_PICTURES = 18
NUM_CLASSES = 5  # that have a curve, if none are named
_BEST = 3  # predictions that a picture shows
_LEAST_SIDE, _LEAST_SQUARE = 8, 16  # of pictures, in pixels
_ALL = "all classes"
_ROUNDING = 1e-3  # by which a probability may exceed 1


class Illustrator:
    """Collects what one evaluation after another shows.

    Args:
        classes: Numbers of the classes that have a curve; empty for the most frequent ones.
        names: Names of the classes; empty if they have none.
        exclusive: Whether an example has one class; None to see that from the first batch.
        columns: The classes that the held-out examples are annotated with; None for all.
    """

    def __init__(
        self,
        classes: tuple[int, ...] = (),
        names: Sequence[str] = (),
        exclusive: bool | None = None,
        columns: NDArray[np.intp] | None = None,
    ) -> None:
        self._classes, self._names, self._given, self._columns = classes, names, exclusive, columns
        self.begin()

    @classmethod
    def of(cls, data: Any, classes: tuple[int, ...] = ()) -> Self:
        """An illustrator of a data set, which knows the classes if it is of labelled images."""
        if not has_labelled_images(data):
            return cls(classes)
        return cls(classes, data.labels.names, are_exclusive(data), scored_classes_of(data).annotated)

    def begin(self) -> None:
        """Begins an evaluation."""
        self._counts = PrecisionRecall(self._classes, self._columns)
        self._exclusive = self._given
        self._are_logits: bool | None = None  # seen from the first batch
        self._fits = True  # whether all batches so far were of classes
        self._random, self._num_seen = random.Random(0), 0
        self._chosen: list[grid.Example] = []

    def add(self, inputs: Any, labels: Any, outputs: Any) -> None:
        """Adds a batch: the model's inputs, its labels, and its outputs; anything that is not of classes ends it.

        Raises:
            ValueError: A class that was named is none.
        """
        outputs = np.asarray(outputs)
        truth = truth_of(labels, outputs.shape) if self._fits else None
        self._fits = truth is not None and bool(np.isfinite(outputs).all())
        if truth is None or not self._fits:
            return
        num_classes = max(outputs.shape[1], 2)
        if wrong := [each for each in self._classes if each >= num_classes]:
            raise ValueError(
                f"sinks: TensorBoard(classes=...) names class {wrong[0]}, and the model has {num_classes}; "
                f"give numbers from 0 to {num_classes - 1}"
            )
        if self._exclusive is None:
            self._exclusive = outputs.shape[1] > 1 and bool((truth.sum(axis=1) == 1).all())
        if self._are_logits is None:
            self._are_logits = bool(outputs.min() < -_ROUNDING or outputs.max() > 1 + _ROUNDING)
        scores = (
            _probabilities(outputs, exclusive=self._exclusive and outputs.shape[1] > 1) if self._are_logits else outputs
        )
        if scores.shape[1] == 1:  # of two classes, and the output says how likely the second one is
            scores, truth = np.hstack([1 - scores, scores]), np.hstack([~truth, truth])
        self._counts.add(scores, truth)
        if self._columns is not None:  # nobody knows whether an example is of the others
            known = np.isin(np.arange(scores.shape[1]), self._columns)
            scores, truth = np.where(known, scores, 0), truth & known
        self._choose(inputs, truth, scores)

    def message(self) -> Illustration:
        """What the evaluation shows; empty where the outputs or the labels were not of classes."""
        counts = self._counts.by_class(NUM_CLASSES)
        if not self._fits or not self._num_seen:
            return Illustration()
        found = {_ALL: self._counts.all(), **{self._name(number): each for number, each in counts.items()}}
        pictures = grid.draw(self._chosen) if self._chosen else b""
        return Illustration(pictures=pictures, curves=[_curve(name, each) for name, each in found.items()])

    def _name(self, number: int) -> str:
        return str(self._names[number]) if number < len(self._names) else f"class {number}"

    def _choose(self, inputs: Any, truth: NDArray[np.bool_], scores: NDArray) -> None:
        """Keeps some of the pictures so far, each with the same chance (reservoir sampling)."""
        pictures = _pictures(inputs)
        for i in range(len(scores)):
            self._num_seen += 1
            place = len(self._chosen)
            if place == NUM_PICTURES and (place := self._random.randrange(self._num_seen)) >= NUM_PICTURES:
                continue
            if pictures is not None:
                self._chosen[place : place + 1] = [self._example(pictures[i], truth[i], scores[i])]

    def _example(self, picture: Any, truth: NDArray[np.bool_], scores: NDArray) -> grid.Example:
        best = [int(each) for each in np.argsort(-scores, kind="stable")[:_BEST]]
        shown = best[:1] if self._exclusive else [each for each in best if scores[each] >= 0.5] or best[:1]
        held = [int(each) for each in np.flatnonzero(truth)]
        return grid.Example(
            np.array(picture, np.float32),
            tuple(map(self._name, held)),
            tuple((self._name(each), float(scores[each])) for each in shown),
            is_right=best[0] in held,
        )


def truth_of(labels: Any, shape: tuple[int, ...]) -> NDArray[np.bool_] | None:
    """[B, C], whether each example is of each class; None where outputs of this shape and labels are not of classes.

    Args:
        labels: [B, C] of 0 and 1, or [B] or [B, 1] of numbers of classes.
        shape: Of the model's outputs.
    """
    if len(shape) != 2 or labels is None or isinstance(labels, Mapping | tuple | list):
        return None
    found = np.asarray(labels)
    if found.dtype.kind not in "bifu" or not found.size:
        return None
    if shape[1] == 1 and found.shape == shape[:1]:
        found = found[:, None]
    if found.shape == shape:
        return found > 0.5 if bool(((found == 0) | (found == 1)).all()) else None
    numbers = found.reshape(-1)
    if found.shape not in (shape[:1], (shape[0], 1)) or (numbers != np.floor(numbers)).any():
        return None
    if numbers.min() < 0 or numbers.max() >= shape[1]:
        return None
    return np.arange(shape[1]) == numbers[:, None]


def _probabilities(logits: NDArray, *, exclusive: bool) -> NDArray:
    """[B, C] in [0, 1]: softmax where classes exclude each other, else each one's logistic function."""
    wide = logits.astype(np.float64)
    if exclusive:
        raised = np.exp(wide - wide.max(axis=1, keepdims=True))
        found: NDArray = raised / raised.sum(axis=1, keepdims=True)
        return found
    return 0.5 * (1 + np.tanh(0.5 * wide))  # does not overflow


def _pictures(inputs: Any) -> Any:
    """Inputs that are pictures, as given; None for others."""
    while isinstance(inputs, Mapping | tuple | list) and len(inputs) == 1:
        inputs = next(iter(inputs.values() if isinstance(inputs, Mapping) else inputs))
    shape = tuple(getattr(inputs, "shape", ()))
    if len(shape) == 3 and shape[1] == shape[2] >= _LEAST_SQUARE:
        return inputs
    return inputs if len(shape) == 4 and shape[3] in (1, 3) and min(shape[1:3]) >= _LEAST_SIDE else None


def _curve(name: str, counts: Counts) -> Illustration.Curve:
    return Illustration.Curve(name=name, positives=counts.positives.tolist(), negatives=counts.negatives.tolist())
