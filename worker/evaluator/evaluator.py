"""The evaluator: scores every checkpoint on the held-out examples and reports the scores to the chief.

The scores of further sets of held-out examples have their names, `val_NAME_loss`.

The scores of a compiled model are its own loss and metrics, `val_loss` and so on as in Keras' `fit`. Those of a job
with a loss of its own are mAP@100 where the data are labelled images, top-1 and top-5 accuracy where the classes of
these are exclusive, and otherwise the mean of that loss, `val_loss`.

Several evaluators share the checkpoints: the chief gives each to one of them, which scores it whole.

Threads: one, and beside it one that tells the chief every second that a checkpoint is being scored. TensorFlow is
allowed here.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import math
import secrets
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from absl import logging

from downpour.model import keras_private, weights
from downpour.model.data import Dataset
from downpour.model.data.batches import Batch, are_exclusive, has_labelled_images, scored_classes_of
from downpour.model.data.nests import num_examples
from downpour.model.metrics import Evaluation, TopKAccuracy
from downpour.model.vision import metrics
from downpour.model.vision.records import RecordCounts
from downpour.proto.chief_pb2 import Score
from downpour.ps.checkpoint import manifest as checkpoint
from downpour.ps.checkpoint import restore
from downpour.ps.checkpoint.shard_file import Damaged
from downpour.ps.layout import Layout
from downpour.worker.exchange.clients import ChiefClient
from downpour.worker.step.forward import Loss, in_float32, infer
from downpour.worker.step.sharing import tensors_of

_ASK_EVERY_S = 0.05  # the chief waits for a checkpoint before it answers that there is none
_TELL_EVERY_S = 1.0  # that a checkpoint is being scored


class Evaluator:
    """Scores parameters of one model on held-out examples.

    Args:
        model: A built model; its variables are overwritten.
        mine: The layout of its variables.
        data: Source of the held-out examples; it may have none where there are further sets.
        batch_size: Examples scored in one call.
        loss: The job's loss; None for a compiled model.
        average: Whether the average of the parameters is scored in their place.
        sets: Further sources by name.

    Attributes:
        has_scored: Whether it has scored a checkpoint.
    """

    def __init__(
        self,
        model: keras.Model,
        mine: Layout,
        data: Dataset,
        batch_size: int,
        loss: Loss = None,
        average: bool = False,
        sets: Mapping[str, Dataset] | None = None,
    ) -> None:
        self.has_scored = False
        self._average = average
        self._model = model
        self._layout = mine
        self._data = {"": data, **(sets or {})}
        self._batch_size = batch_size
        self._evaluate = _evaluation(model, data, loss)

    def score(self, directory: str) -> tuple[dict[str, float], RecordCounts]:
        """Scores one checkpoint.

        Returns:
            The scores by name; and how many records were read and skipped.

        Raises:
            LayoutMismatch: The checkpoint is of another model; the number of shards may differ.
            Damaged: The checkpoint is corrupt.
            ValueError: The checkpoint or the data cannot be read, or there is no average.
        """
        saved = checkpoint.load(directory)
        restore.check(saved, self._layout.variables)
        weights.load(self._model, saved, self._average)
        return self._score()

    def score_values(self, values: Mapping[str, np.ndarray]) -> tuple[dict[str, float], RecordCounts]:
        """Scores values of the variables, by name; returns what `score` does.

        Raises:
            ValueError: The data cannot be read.
        """
        weights.assign(self._model, values)
        return self._score()

    def _score(self) -> tuple[dict[str, float], RecordCounts]:
        scores: dict[str, float] = {}
        counts = RecordCounts()
        for name, data in self._data.items():
            found, seen = self._scored(data, is_needed=bool(name) or len(self._data) == 1)
            scores |= {_name_in(name, key): value for key, value in found.items()}
            counts.read, counts.skipped = counts.read + seen.read, counts.skipped + seen.skipped
            counts.examples += seen.examples
        self.has_scored = True
        return scores, counts

    def _scored(self, data: Dataset, *, is_needed: bool) -> tuple[dict[str, float], RecordCounts]:
        """Scores one source; without a batch there is no score, or an error if one is needed."""
        for layer in keras_private.layers_of(self._model):
            if isinstance(layer, keras.layers.RNN) and layer.stateful:  # its states stem from the last batch scored
                layer.reset_state()
        with data.heldout(batch_size=self._batch_size) as batches:
            first = next(batches, None)
            if first is None and is_needed:
                raise ValueError(
                    f"data source {type(data).__name__} gives no held-out batch to score; give held-out ones, "
                    "or start with --noevaluator to train without scores"
                )
            scores = {} if first is None else self._evaluate(itertools.chain([first], batches), data)
            return scores, batches.counts


Evaluate = Callable[[Iterable[Batch], Dataset], dict[str, float]]  # of batches, and what they are of
_TOP = (1, 5)
_VALUES_AT_ONCE = 1 << 20  # of images
_AVERAGE_PRECISION = ("map_at_100", "map_at_100_unweighted", "chance", "chance_weighted")


def score_names(model: keras.Model, data: Dataset, loss: Loss, sets: Iterable[str] = ()) -> list[str]:
    """Names of the scores of a job.

    Args:
        model: A built model; a compiled one has computed its loss once, so that Keras has made its metrics.
        data: As in `Evaluator`.
        loss: As in `Evaluator`.
        sets: Names of further sets.
    """
    if loss is None:
        names = [f"val_{name}" for name in Evaluation(model).names]
    elif not has_labelled_images(data):
        names = ["val_loss"]
    elif are_exclusive(data):
        names = [f"top_{k}_accuracy" for k in _TOP]
    else:
        names = list(_AVERAGE_PRECISION)
    return [*names, *(_name_in(one, name) for one in sets for name in names)]


def _name_in(of_set: str, name: str) -> str:
    """Name of a score of one of several sets."""
    return f"val_{of_set}_{name.removeprefix('val_')}" if of_set else name


def _evaluation(model: keras.Model, data: Dataset, loss: Loss) -> Evaluate:
    """Returns the function that computes the scores of a model on batches; `data` decides which scores."""
    if loss is None:
        evaluation = Evaluation(model)
        return lambda batches, _: {f"val_{n}": float(v) for n, v in evaluation(batches).items() if not np.ndim(v)}
    if has_labelled_images(data):
        return _top_k(model) if are_exclusive(data) else _average_precision(model)
    return _mean_loss(model, loss)


def _average_precision(model: keras.Model) -> Evaluate:
    """Scores labelled images.

    The scores are `map_at_100` (classes weighted as the data say, by default by popularity), `map_at_100_unweighted`,
    and what random scores would reach, `chance` (unweighted) and `chance_weighted`.
    """
    predict = _predictor(model)

    def evaluate(batches: Iterable[Batch], data: Dataset) -> dict[str, float]:
        best = metrics.BestPredictions(classes=scored_classes_of(data))
        for images, labels in batches:
            metrics.check_labels(np.asarray(labels))
            best.add(predict(images), labels)
        mean, chance = best.mean(), best.chance()
        values = mean.weighted, mean.unweighted, chance.unweighted, chance.weighted
        return dict(zip(_AVERAGE_PRECISION, values, strict=True))

    return evaluate


def _top_k(model: keras.Model) -> Evaluate:
    """Scores images with one label each, a single crop: `top_1_accuracy` and `top_5_accuracy`."""
    predict = _predictor(model)
    scores = [TopKAccuracy(k) for k in _TOP]

    def evaluate(batches: Iterable[Batch], data: Dataset) -> dict[str, float]:
        for score in scores:
            score.reset_state()
        for images, labels in batches:
            predicted = predict(images)
            metrics.check_finite(predicted)
            for score in scores:
                score.update_state(labels, predicted)
        return {score.name: float(score.result()) for score in scores}

    return evaluate


def _predictor(model: keras.Model) -> Callable[[Any], np.ndarray]:
    """Returns a function that computes the model's outputs for images [B, S, S, 3] in inference mode, [B, C].

    On a processor large images are computed a few at a time, since activations take some 20 MB an image of 299 x 299.
    """
    compiled: Any = tf.function(lambda images: infer(model, images), reduce_retracing=True, autograph=False)
    is_sized = any(tensor.shape[0] is not None for tensor in tf.nest.flatten(getattr(model, "inputs", None) or []))
    in_parts = not (is_sized or tf.config.list_logical_devices("GPU"))

    def predict(images: Any) -> np.ndarray:
        images = tensors_of(images)
        size = max(1, _VALUES_AT_ONCE // math.prod(images.shape[1:])) if in_parts else len(images)
        parts = [compiled(images[at : at + size]).numpy() for at in range(0, len(images), size)]
        return np.concatenate(parts) if len(parts) > 1 else parts[0]

    return predict


def _mean_loss(model: keras.Model, loss: Callable[[Any, Any], Any]) -> Evaluate:
    """Computes the job's loss, as a mean over batches weighted by their numbers of examples."""

    def of_batch(inputs: Any, labels: Any) -> tf.Tensor:
        return tf.cast(loss(labels, tf.nest.map_structure(in_float32, infer(model, inputs))), tf.float32)

    compute = tf.function(of_batch, reduce_retracing=True, autograph=False)

    def evaluate(batches: Iterable[Batch], data: Dataset) -> dict[str, float]:
        total, count = 0.0, 0
        for inputs, labels, *rest in batches:
            if rest and rest[0] is not None:
                raise ValueError("the held-out examples have sample weights, which a job's own loss does not take")
            size = num_examples(inputs)
            total, count = total + size * float(compute(*tensors_of((inputs, labels)))), count + size
        return {"val_loss": total / count}

    return evaluate


def run(
    evaluator: Evaluator,
    chief: ChiefClient,
    scored: Callable[[int, float, int, int], None] = lambda *_: None,
    index: int = 0,
) -> None:
    """Scores each checkpoint that the chief gives, and reports its score, until the last one.

    Args:
        evaluator: Scores them.
        chief: The chief.
        scored: Called with each one's step, the seconds that it took, and the records read and skipped.
        index: Index among the job's evaluators.
    """
    step, incarnation = -1, secrets.randbits(63)
    while True:
        found = chief.next_checkpoint(step, index, incarnation)
        if not found.directory:
            if found.stop:
                return
            time.sleep(_ASK_EVERY_S)
            continue
        step, directory = found.step, found.directory
        began_s = time.monotonic()
        try:
            with _telling(functools.partial(chief.scoring, step, index, incarnation, _TELL_EVERY_S)):
                metrics_, counts = evaluator.score(directory)
        except ValueError as error:
            whole = _is_whole(directory)
            if found.last or (whole and not isinstance(error, Damaged)):
                raise
            if whole:
                logging.warning("the checkpoint of step %d is not scored: %s", step, error)
            else:
                logging.warning("the chief removed the checkpoint of step %d before it was read", step)
            continue
        seconds = time.monotonic() - began_s
        text = ", ".join(f"{name} {value:.4g}" for name, value in metrics_.items())
        logging.info("step %d: %s; %d examples in %.1f s", step, text, counts.read, seconds)
        chief.report_score(
            Score(
                step=step,
                metrics=metrics_,
                records_read=counts.read,
                records_skipped=counts.skipped,
                skipped_examples=counts.examples,
            )
        )
        scored(step, seconds, counts.read, counts.skipped)
        if found.last:
            return


@contextlib.contextmanager
def _telling(tell: Callable[[], None]) -> Iterator[None]:
    """Calls a function every second while the block lasts."""
    over = threading.Event()

    def repeat() -> None:
        while not over.wait(_TELL_EVERY_S):
            tell()

    thread = threading.Thread(target=repeat, name="telling", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _is_whole(directory: str) -> bool:
    """Whether a checkpoint still exists with all its files; the chief keeps only the newest few."""
    try:
        return checkpoint.load(directory).is_whole()
    except ValueError:
        return False
