"""Top-k accuracy of multi-hot targets as a Keras metric. Keras with the TensorFlow backend. Threads: one."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf


@keras.saving.register_keras_serializable(package="downpour")
class TopKAccuracy(keras.metrics.Metric):
    """Fraction of the examples of which a label is among the k best predictions; streams over batches, exact.

    Targets are [B, C] of 0 and 1, predictions [B, C] on any monotone scale. Of classes that exclude each other, one 1 a
    row, it is Keras' `CategoricalAccuracy` for k = 1 and `TopKCategoricalAccuracy` for more, except that of equal
    predictions those of lower classes are taken first, so that a model that says the same of all classes is right by
    chance and not always. Examples without a label are left out. It counts in integers.

    It has no sample weights: list it in `metrics`, not in `weighted_metrics`.

    Args:
        k: Predictions taken of each example; at least 1. All, if there are fewer classes.
        name: Name of the score; by default `top_K_accuracy`.
        dtype: Ignored: the value is float64.

    Raises:
        ValueError: `k` is below 1.
    """

    def __init__(self, k: int = 1, name: str | None = None, dtype: Any = None) -> None:
        if k < 1:
            raise ValueError(f"k is {k}; give at least 1 prediction of each example")
        super().__init__(name=name or f"top_{k}_accuracy", dtype=dtype)
        self.k = k
        self._right = self.add_variable(shape=(), initializer="zeros", dtype="int64", name="right")
        self._counted = self.add_variable(shape=(), initializer="zeros", dtype="int64", name="counted")

    def update_state(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> None:
        """Adds a batch.

        Args:
            y_true: [B, C] of 0 and 1.
            y_pred: [B, C] scores.
            sample_weight: None.

        Raises:
            ValueError: Sample weights are given, or shapes are not [B, C] twice.
        """
        if sample_weight is not None:
            raise ValueError(f"{self.name} has no sample weights; list it in metrics, not in weighted_metrics")
        labels = keras.ops.convert_to_tensor(y_true) > 0
        scores = keras.ops.convert_to_tensor(y_pred)
        if scores.shape.rank != 2 or labels.shape.rank != 2 or scores.shape[1] != labels.shape[1]:
            raise ValueError(
                f"{self.name}: labels are {labels.shape} and predictions {scores.shape}; give both as [examples, "
                "classes], and numbers of classes to SparseTopKCategoricalAccuracy"
            )
        best = tf.math.top_k(scores, min(self.k, scores.shape[1])).indices  # equal ones: the lower index first
        hits = tf.reduce_any(tf.gather(labels, best, batch_dims=1), axis=1)
        self._right.assign_add(tf.math.count_nonzero(hits))
        self._counted.assign_add(tf.math.count_nonzero(tf.reduce_any(labels, axis=1)))

    def result(self) -> tf.Tensor:
        """Returns the fraction as a float64 scalar; NaN while no example carries a label."""
        return tf.cast(self._right.value, tf.float64) / tf.cast(self._counted.value, tf.float64)

    def get_config(self) -> dict[str, Any]:
        """Arguments of the constructor."""
        return {**super().get_config(), "k": self.k}
