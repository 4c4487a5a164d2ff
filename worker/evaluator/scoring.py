"""Scores of a model on batches of held-out examples; the data and the loss of a job decide which.

The scores of a compiled model are its own loss and metrics, `val_loss` and so on as in Keras' `fit`. Those of a job
with a loss of its own are mAP@100 where the data are labelled images, top-1 and top-5 accuracy where the classes of
these are exclusive, and otherwise the mean of that loss, `val_loss`.

Threads: one. TensorFlow is allowed here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from downpour.model.data import Dataset
from downpour.model.data.batches import Batch, are_exclusive, has_labelled_images, scored_classes_of
from downpour.model.data.nests import num_examples
from downpour.model.metrics import Evaluation, TopKAccuracy
from downpour.model.vision import metrics
from downpour.worker.step.forward import Loss, in_float32, infer
from downpour.worker.step.sharing import tensors_of

Seen = Callable[[Any, Any, Any], None]  # of a batch: inputs, labels, outputs
Evaluate = Callable[[Iterable[Batch], Dataset, Seen], dict[str, float]]  # of batches, what they are of, who sees them
_TOP = (1, 5)
_VALUES_AT_ONCE = 1 << 20  # of images
_AVERAGE_PRECISION = ("map_at_100", "map_at_100_unweighted", "chance", "chance_weighted")


def score_names(model: keras.Model, data: Dataset, loss: Loss, sets: Iterable[str] = ()) -> list[str]:
    """Names of the scores of a job.

    Args:
        model: A built model; a compiled one has computed its loss once, so that Keras has made its metrics.
        data: Source of the held-out examples.
        loss: The job's loss; None for a compiled model.
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
    return [*names, *(name_in(one, name) for one in sets for name in names)]


def name_in(of_set: str, name: str) -> str:
    """Name of a score of one of several sets."""
    return f"val_{of_set}_{name.removeprefix('val_')}" if of_set else name


def unseen(inputs: Any, labels: Any, outputs: Any) -> None:
    """Does nothing with a batch."""


def evaluation(model: keras.Model, data: Dataset, loss: Loss) -> Evaluate:
    """Returns the function that computes the scores of a model on batches; `data` decides which scores."""
    if loss is None:
        return _own_scores(model)
    if has_labelled_images(data):
        return _top_k(model) if are_exclusive(data) else _average_precision(model)
    return _mean_loss(model, loss)


def _own_scores(model: keras.Model) -> Evaluate:
    """Scores by loss and metrics of a compiled model."""
    compute = Evaluation(model)

    def evaluate(batches: Iterable[Batch], data: Dataset, seen: Seen) -> dict[str, float]:
        return {f"val_{name}": float(value) for name, value in compute(batches, seen).items() if not np.ndim(value)}

    return evaluate


def _average_precision(model: keras.Model) -> Evaluate:
    """Scores labelled images.

    The scores are `map_at_100` (classes weighted as the data say, by default by popularity), `map_at_100_unweighted`,
    and what random scores would reach, `chance` (unweighted) and `chance_weighted`.
    """
    predict = _predictor(model)

    def evaluate(batches: Iterable[Batch], data: Dataset, seen: Seen) -> dict[str, float]:
        best = metrics.BestPredictions(classes=scored_classes_of(data))
        for images, labels in batches:
            metrics.check_labels(np.asarray(labels))
            predicted = predict(images)
            best.add(predicted, labels)
            seen(images, labels, predicted)
        mean, chance = best.mean(), best.chance()
        values = mean.weighted, mean.unweighted, chance.unweighted, chance.weighted
        return dict(zip(_AVERAGE_PRECISION, values, strict=True))

    return evaluate


def _top_k(model: keras.Model) -> Evaluate:
    """Scores images with one label each, a single crop: `top_1_accuracy` and `top_5_accuracy`."""
    predict = _predictor(model)
    scores = [TopKAccuracy(k) for k in _TOP]

    def evaluate(batches: Iterable[Batch], data: Dataset, seen: Seen) -> dict[str, float]:
        for score in scores:
            score.reset_state()
        for images, labels in batches:
            predicted = predict(images)
            metrics.check_finite(predicted)
            for score in scores:
                score.update_state(labels, predicted)
            seen(images, labels, predicted)
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

    def evaluate(batches: Iterable[Batch], data: Dataset, seen: Seen) -> dict[str, float]:
        total, count = 0.0, 0
        for inputs, labels, *rest in batches:
            if rest and rest[0] is not None:
                raise ValueError("the held-out examples have sample weights, which a job's own loss does not take")
            size = num_examples(inputs)
            total, count = total + size * float(compute(*tensors_of((inputs, labels)))), count + size
        return {"val_loss": total / count}

    return evaluate
