"""Evaluates a compiled Keras model on batches, with its own loss and metrics. Threads: one."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import keras
import tensorflow as tf


class Evaluation:
    """What `model.evaluate` does, for batches from any iterator; compiled once for any number of evaluations.

    It calls the model's `test_step`, so a model's own one counts, without XLA. Unlike `model.evaluate` it computes the
    results of metrics once, after the last batch.

    Args:
        model: A compiled model. Its `test_step` changes the state of metrics, and of layers that keep one.

    Raises:
        ValueError: The model is not compiled.
    """

    def __init__(self, model: keras.Model) -> None:
        if not model.compiled:
            raise ValueError(f"the model {model.name!r} is not compiled; call model.compile(loss=...) first")
        self._model = model
        step = tf.function(self._update, reduce_retracing=True, autograph=False)
        self._step = self._update if model.run_eagerly else step

    def __call__(self, batches: Iterable[Any]) -> dict[str, Any]:
        """Resets the model's metrics and evaluates it.

        Args:
            batches: Each `(x,)`, `(x, y)` or `(x, y, sample_weight)`, in nested structures of arrays [B, ...]; B may
                differ. None stands for an absent part. float64 becomes float32, as in `evaluate` of arrays.

        Returns:
            `loss` and all metrics by name, as `model.evaluate(..., return_dict=True)`: numbers, and arrays for metrics
            of several values.

        Raises:
            ValueError: There is no batch.
        """
        self._model.reset_metrics()
        num_batches = 0
        for batch in batches:
            self._step(keras.tree.map_structure(_tensor, batch))
            num_batches += 1
        if not num_batches:
            raise ValueError("there is no batch to evaluate the model on; give at least one")
        return _numbers(self._model.get_metrics_result())

    def _update(self, batch: Any) -> None:
        self._model.test_step(batch)


def _tensor(value: Any) -> Any:
    if value is None:
        return None
    tensor = value if tf.is_tensor(value) else tf.convert_to_tensor(value)
    return tf.cast(tensor, tf.float32) if tensor.dtype == tf.float64 else tensor


def _numbers(results: dict[str, Any]) -> dict[str, Any]:
    """Flattens results, in which a metric may have several of its own, and converts them to numbers or arrays."""
    flat: dict[str, Any] = {}
    for name, value in results.items():
        if isinstance(value, dict):
            flat |= _numbers(value)
        else:
            array = keras.ops.convert_to_numpy(value)
            flat[name] = array if array.ndim else float(array)
    return flat
