"""Large variables in memory of their own, so that a process that only computes with a model holds its weights once.

TensorFlow gives none of the memory back that tensors have occupied, and Keras draws initial values in three times a
variable's bytes. Here a large variable is in memory that is mapped for it alone: zeros take none until they are
written, and what a variable held before goes back to the system. Keras with the TensorFlow backend. Threads: one.
"""

from __future__ import annotations

import contextlib
import math
import mmap
from collections.abc import Callable, Collection, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from downpour.model import keras_private

if TYPE_CHECKING:
    import keras

_LARGE = 1 << 16  # elements

Undrawn = list[tuple[Any, Callable[..., Any]]]  # variables and their initializers


def is_large(shape: tuple[int, ...]) -> bool:
    """Whether a variable of a shape is worth memory of its own."""
    return math.prod(shape) >= _LARGE


def zeros(shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Zeros in memory of their own, which goes back to the system with the array."""
    memory = mmap.mmap(-1, 4 * math.prod(shape), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return np.frombuffer(memory, np.float32).reshape(shape)


def assign(variable: keras.Variable, value: NDArray[np.float32]) -> None:
    """Assigns a value of `zeros` to a variable, which is from then on in that memory; do not change it any more."""
    variable.assign(_tensor(value) if variable.dtype == "float32" else value)


@contextlib.contextmanager
def undrawn() -> Iterator[Undrawn]:
    """Gives large variables zeros in place of random initial values, while models are built that are assigned others.

    Only initializers of Keras with a fixed seed are concerned, so that `draw` finds the same values later.

    Yields:
        The variables concerned, for `draw`.
    """
    found: Undrawn = []

    def replaced(variable: Any, initializer: Any) -> Any:
        is_fixed = isinstance(getattr(initializer, "seed", None), int) and variable.dtype == "float32"
        if not (is_fixed and type(initializer).__module__.startswith("keras.") and is_large(variable.shape)):
            return initializer
        found.append((variable, initializer))
        return lambda shape, **_: _tensor(zeros(tuple(shape)))

    with keras_private.initializers_replaced(replaced):
        yield found


def draw(variables: Undrawn, assigned: Collection[str]) -> None:
    """Draws what `undrawn` left out.

    Args:
        variables: What `undrawn` yielded.
        assigned: Paths of variables that will be assigned other values, and are left as they are.
    """
    for variable, initializer in variables:
        if variable.path not in assigned:
            variable.assign(initializer(variable.shape, dtype=variable.dtype))


def _tensor(value: NDArray[np.float32]) -> Any:
    """A tensor of the same memory."""
    import tensorflow as tf

    return tf.experimental.dlpack.from_dlpack(value.__dlpack__())
