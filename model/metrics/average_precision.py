"""mAP@100 as a Keras metric.

Keras with the TensorFlow backend. The state is in numpy arrays, which TensorFlow graphs reach by `tf.numpy_function`,
so a function that updates the metric must not be compiled by XLA (`jit_compile=False`). Threads: one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from downpour.model.vision.metrics import BestPredictions, check_labels
from downpour.model.vision.scored_classes import ScoredClasses


@keras.saving.register_keras_serializable(package="downpour")
class MeanAveragePrecision(keras.metrics.Metric):
    """mAP@cut of multi-label predictions, and what random scores would reach; streams over batches.

    Targets are [B, C] of 0 and 1, predictions [B, C] on any monotone scale. It keeps the `cut` best predictions of
    each example, 9 bytes each, and `result()` is that of `downpour.model.vision.metrics` on all of them at once. It has
    no sample weights: list it in `metrics`, not in `weighted_metrics`.

    `result()` sorts all that is kept. In a graph that does not use its values, as in `Evaluation`, it costs nothing;
    Keras' own `fit` and `evaluate` use them after each batch.

    Args:
        cut: Predictions kept per example; at least 1.
        name: Name of the score, classes weighted; that of the unweighted one ends in `_unweighted`.
        chance_name: Name of what random scores reach, unweighted; that of the weighted one ends in `_weighted`.
            A model with two such metrics needs two of each name.
        dtype: Ignored: values are float64.
        class_weights: [C], the weight of each class; None for popularity. Those of a file are
            `ImageRecords(...).scored_classes.weights`.
        annotated: Indices of the classes that are scored; None for all.
    """

    def __init__(
        self,
        cut: int = 100,
        name: str = "map_at_100",
        chance_name: str = "chance",
        dtype: Any = None,
        *,
        class_weights: Sequence[float] | np.ndarray | None = None,
        annotated: Sequence[int] | np.ndarray | None = None,
    ) -> None:
        super().__init__(name=name, dtype=dtype)
        self.cut = cut
        self.chance_name = chance_name
        self.classes = ScoredClasses(
            None if annotated is None else np.sort(np.asarray(annotated, np.intp)),
            None if class_weights is None else np.asarray(class_weights, np.float64),
        )
        self._best = BestPredictions(cut, self.classes)
        # Orders results after updates in a graph, and holds what Keras may save; the arrays are beside it.
        self._num_examples = self.add_variable(shape=(), initializer="zeros", dtype="int64", name="num_examples")

    def update_state(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> None:
        """Adds a batch.

        Args:
            y_true: [B, C] of 0 and 1.
            y_pred: [B, C] scores.
            sample_weight: None.

        Raises:
            ValueError: Sample weights are given; shapes differ, labels are neither 0 nor 1, or a score is not finite.
                In a graph a `tf.errors.InvalidArgumentError` with this message.
        """
        if sample_weight is not None:
            raise ValueError(f"{self.name} has no sample weights; list it in metrics, not in weighted_metrics")
        scores = keras.ops.convert_to_tensor(y_pred)
        if scores.dtype not in (tf.float32, tf.float64):
            scores = tf.cast(scores, tf.float32)
        labels = tf.cast(keras.ops.convert_to_tensor(y_true), tf.float32)
        if tf.executing_eagerly():
            added = self._add(scores.numpy(), labels.numpy())
        else:
            added = tf.ensure_shape(tf.numpy_function(self._add, [scores, labels], tf.int64), ())
        self._num_examples.assign_add(added)

    def result(self) -> dict[str, Any]:
        """Returns four float64 scalars by name; all NaN while no example carries a label."""
        names = (self.name, f"{self.name}_unweighted", self.chance_name, f"{self.chance_name}_weighted")
        # Stateless: a graph that does not use the values does not compute them. The argument orders it after updates.
        counted = tf.convert_to_tensor(self._num_examples)
        values = tf.numpy_function(self._values, [counted], [tf.float64] * len(names), stateful=False)
        return {name: tf.ensure_shape(value, ()) for name, value in zip(names, values, strict=True)}

    def reset_state(self) -> None:
        """Forgets all batches."""
        self._best = BestPredictions(self.cut, self.classes)
        super().reset_state()

    def get_config(self) -> dict[str, Any]:
        """Arguments of the constructor."""
        weights, annotated = self.classes.weights, self.classes.annotated
        return {
            **super().get_config(),
            "cut": self.cut,
            "chance_name": self.chance_name,
            "class_weights": None if weights is None else weights.tolist(),
            "annotated": None if annotated is None else annotated.tolist(),
        }

    def _add(self, scores: np.ndarray, labels: np.ndarray) -> np.int64:
        check_labels(labels)
        self._best.add(scores, labels)
        return np.int64(len(scores))

    def _values(self, num_examples: np.ndarray) -> tuple[np.float64, ...]:
        assert num_examples == self._best.num_images, "the variable counts what the arrays hold"
        if not self._best.has_labels():
            return (np.float64(math.nan),) * 4
        mean, chance = self._best.mean(), self._best.chance()
        return tuple(map(np.float64, (mean.weighted, mean.unweighted, chance.unweighted, chance.weighted)))
