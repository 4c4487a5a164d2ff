"""Checks that integer targets of sparse_categorical_crossentropy are classes of the model's output."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from downpour.model import keras_private
from downpour.model.data import Examples

if TYPE_CHECKING:
    import keras


def check_classes(model: keras.Model, examples: Any) -> None:
    """Checks arrays in memory that no function changes, for a model of one output.

    Args:
        model: A compiled model.
        examples: A data set.

    Raises:
        ValueError: A label is below 0 or beyond the last class; names the first such example.
    """
    outputs = getattr(model, "outputs", None) or []
    if len(outputs) != 1 or not outputs[0].shape or outputs[0].shape[-1] is None or not _is_sparse(model):
        return
    if not isinstance(examples, Examples) or examples.map is not None or examples.collate is not None:
        return
    num_classes = outputs[0].shape[-1]
    for name, given in (("train", examples.train), ("validation", examples.validation)):
        labels = given[1] if isinstance(given, tuple) and len(given) in (2, 3) else None
        if not isinstance(labels, np.ndarray) or labels.dtype.kind not in "iu" or not labels.size:
            continue
        if 0 <= labels.min() and labels.max() < num_classes:
            continue
        place = np.argwhere((labels < 0) | (labels >= num_classes))[0]
        raise ValueError(
            f"{name}, example {place[0]}: the label is {labels[tuple(place)]}, and the model has {num_classes} "
            f"classes; give labels from 0 to {num_classes - 1}, or the model more outputs"
        )


def _is_sparse(model: keras.Model) -> bool:
    loss = keras_private.compile_arguments(model).get("loss")
    return loss == "sparse_categorical_crossentropy" or (
        type(loss).__name__ == "SparseCategoricalCrossentropy" and getattr(loss, "ignore_class", None) is None
    )
