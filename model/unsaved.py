"""What Keras leaves out of a `.keras` file: which variables are trained, and the values of LoRA's matrices.

Keras sets `trainable` of a loaded variable from its layer alone, adds the product of LoRA's matrices to the kernel that
it saves, and loads both as zeros, from which no gradient leads away. A file beside the model's keeps both, with the
shapes of all variables, by which a class that is made again otherwise is noticed.

Does not import Keras.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from downpour.model import keras_private

if TYPE_CHECKING:
    import keras


def write(model: keras.Model, path: Path) -> None:
    """Writes the file of a built model."""
    kept = {id(v) for layer in keras_private.layers_of(model) for v in _lora_of(layer)}
    values = {str(number): v.numpy() for number, v in enumerate(model.variables) if id(v) in kept}
    np.savez(path, shapes=_shapes(model), trainable=np.array([v.trainable for v in model.variables], bool), **values)


def restore(model: keras.Model, path: Path) -> None:
    """Sets in a loaded model what the file of the saved one says; does nothing without a file.

    Raises:
        ValueError: The model has other variables than the saved one.
    """
    if not path.is_file():
        return
    with np.load(path) as file:
        here, there = _shapes(model).tolist(), file["shapes"].tolist()
        if here != there:
            raise ValueError(
                f"the model {model.name!r} was saved with variables of shapes {'; '.join(there)}, and is loaded with "
                f"{'; '.join(here)}: what a class of its makes depends on more than its get_config returns; return all "
                "arguments there, or give fit a function that builds the model"
            )
        for number, (variable, trainable) in enumerate(zip(model.variables, file["trainable"], strict=True)):
            if variable.trainable != trainable:
                variable.trainable = bool(trainable)
            if str(number) in file:
                variable.assign(file[str(number)])


def _lora_of(layer: Any) -> list[Any]:
    """The variables of a layer with LoRA that Keras saves in another form; none of another layer."""
    return list(layer.variables) if getattr(layer, "lora_enabled", False) else []


def _shapes(model: keras.Model) -> np.ndarray:
    return np.array([" x ".join(map(str, v.shape)) or "1" for v in model.variables], str)
