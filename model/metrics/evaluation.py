"""Evaluates a compiled Keras model on batches, with its own loss and metrics. Threads: one."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import keras
import tensorflow as tf

from downpour.model import keras_private

Seen = Callable[[Any, Any, Any], None]


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
        self._compiled = tf.function(self._update, reduce_retracing=True, autograph=False)

    @property
    def names(self) -> list[str]:
        """Names of the results that are single numbers; the model has computed its loss once."""
        return [name for name, value in _numbers(self._model.get_metrics_result()).items() if isinstance(value, float)]

    def __call__(self, batches: Iterable[Any], seen: Seen | None = None) -> dict[str, Any]:
        """Resets the model's metrics and evaluates it.

        Args:
            batches: Each `(x,)`, `(x, y)` or `(x, y, sample_weight)`, in nested structures of arrays [B, ...]; B may
                differ. None stands for an absent part. float64 becomes float32, as in `evaluate` of arrays.
            seen: Called with x, y and the model's outputs of each batch that has y, if the outputs are a single tensor
                [B, C]. They are what `test_step` passes to `compute_metrics`, as Keras' own does.

        Returns:
            `loss` and all metrics by name, as `model.evaluate(..., return_dict=True)`: numbers, and arrays for metrics
            of several values.

        Raises:
            ValueError: There is no batch.
        """
        self._model.reset_metrics()
        step = None
        for batch in batches:
            tensors = keras.tree.map_structure(_tensor, batch)
            step = step or self._step_for(tensors)
            outputs = step(tensors)
            if seen is not None and outputs is not None:
                seen(batch[0], batch[1], outputs.numpy())
        if step is None:
            raise ValueError("there is no batch to evaluate the model on; give at least one")
        return _numbers(self._model.get_metrics_result())

    def _step_for(self, tensors: Any) -> Callable[[Any], Any]:
        """Returns the step, compiled for batches of this structure and of any size unless the model runs eagerly.

        The size is unknown to the trace, as in Keras where batches differ in size: each then counts alike in the losses
        of single outputs, and by its examples in their sum, `loss`.
        """
        if self._model.run_eagerly:
            return self._update
        self._compiled.get_concrete_function(keras.tree.map_structure(_of_any_size, tensors))
        return self._compiled

    def _update(self, batch: Any) -> tf.Tensor | None:
        with keras_private.measured(self._model) as outputs:
            self._model.test_step(batch)
        is_shown = len(batch) > 1 and len(outputs) == 1 and tf.is_tensor(outputs[0]) and outputs[0].shape.rank == 2
        return outputs[0] if is_shown else None


def _tensor(value: Any) -> Any:
    if value is None:
        return None
    tensor = value if tf.is_tensor(value) else tf.convert_to_tensor(value)
    return tf.cast(tensor, tf.float32) if tensor.dtype == tf.float64 else tensor


def _of_any_size(tensor: Any) -> Any:
    if not isinstance(tensor, tf.Tensor) or tensor.shape.rank == 0:
        return tensor
    return tf.TensorSpec([None, *tensor.shape[1:]], tensor.dtype)


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
