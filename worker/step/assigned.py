"""Trained kernels that a layer assigns in a training call: those of `keras.layers.SpectralNormalization`.

The layer divides its kernel by an estimate of the kernel's largest singular value, assigns the quotient, and computes
with it; gradient and update start from there. A worker cannot assign what a shard holds. So the layout has a second
variable beside such a kernel, a statistic named `KERNEL:assigned` that starts at zero:

    value of the kernel = K + A        K is updated by the rule, A by the workers' differences: assigned - (K + A)

One worker alone thus gets the same as plain Keras, to rounding. The differences of k workers that pulled the same value
would move it k times too far, so each pushes a k-th of its own (`share`), and of the difference of the vector of the
power iteration, which is a statistic, too. A value that is s times too large then approaches 1 as one worker's would,
without overshooting by more than the staleness brings.

Threads: any. TensorFlow is allowed here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import keras
import tensorflow as tf

from downpour.model import keras_private
from downpour.model.weights import ASSIGNED
from downpour.ps.layout import STATISTIC, Layout

# held(variable, assigned value) -> the value that the call computes with from then on
Held = Callable[[keras.Variable, tf.Tensor], tf.Tensor]


def assigned_kernels(model: keras.Model) -> list[keras.Variable]:
    """Returns the trained kernels of a built model that layers assign, each once."""
    trained = {id(variable) for variable in model.trainable_variables}
    kernels = {id(layer.kernel): layer.kernel for layer in _layers(model)}
    return [kernel for number, kernel in kernels.items() if number in trained]


def assigned_statistics(model: keras.Model) -> set[str]:
    """Returns the paths of the variables of such layers that are not trained, and whose differences add up."""
    trained = {id(variable) for variable in model.trainable_variables}
    variables = [variable for layer in _layers(model) for variable in (layer.kernel, layer.vector_u)]
    return {variable.path for variable in variables if id(variable) not in trained}


def beside(layout: Layout) -> dict[int, int]:
    """Returns the number of a kernel's second variable, by the kernel's own number in a layout."""
    numbers = {variable.name: number for number, variable in enumerate(layout.variables)}
    return {numbers[name.removesuffix(ASSIGNED)]: number for name, number in numbers.items() if name.endswith(ASSIGNED)}


class Assigned:
    """What a step does with the kernels that layers assign, and with all statistics.

    Args:
        model: A built model.
        layout: Layout of its variables.
        variables: Those of the model that the layout has, in its order.
        part: See `share`.
    """

    def __init__(self, model: keras.Model, layout: Layout, variables: Sequence[keras.Variable], part: float) -> None:
        self._variables = variables
        self._beside = beside(layout)
        self._numbers = {id(variables[i]): i for i in self._beside}
        shared = assigned_statistics(model)
        # The variable whose difference each statistic takes, and the part of it.
        self._of = {number: (i, part) for i, number in self._beside.items()}
        for number, variable in enumerate(variables):
            if layout.variables[number].kind == STATISTIC:
                self._of[number] = number, part if variable.path in shared else 1.0

    def values(self, values: dict[int, tf.Tensor]) -> list[tf.Tensor]:
        """Returns the values of the model's variables from those of the layout's, by number."""
        whole = values | {i: values[i] + values[number] for i, number in self._beside.items()}
        return [whole[i] for i in range(len(self._variables))]

    def held(self, tape: tf.GradientTape, watched: dict[int, list[tf.Tensor]]) -> Held:
        """Returns a function for `Scope`: the gradient of an assigned kernel begins at its new value, as in Keras.

        Args:
            tape: Tape of the step.
            watched: The values at which gradients begin, by number; those that are assigned are appended.
        """

        def held(variable: keras.Variable, value: tf.Tensor) -> tf.Tensor:
            number = self._numbers.get(id(variable))
            if number is not None:
                value = tf.stop_gradient(value)
                tape.watch(value)
                watched[number].append(value)
            return value

        return held

    def differences(self, scope: keras.StatelessScope, before: Sequence[tf.Tensor]) -> dict[int, tf.Tensor]:
        """Returns what each statistic is moved by, by number, in float32.

        Args:
            scope: Holds the values after the call.
            before: Values of the model's variables before it.
        """
        return {
            number: part * (tf.cast(scope.get_current_value(self._variables[i]), tf.float32) - before[i])
            for number, (i, part) in self._of.items()
        }


def share(num_workers: int, *, overlap: bool) -> float:
    """Returns the part of its difference that each of several workers pushes.

    With `overlap` a worker's own last push is not in what it pulls, which is as if there were twice as many workers.
    """
    return 1 / (num_workers * (2 if overlap else 1))


def has_assigned(model: keras.Model) -> bool:
    """Whether a model has kernels that are assigned."""
    return bool(_layers(model))


def _layers(model: keras.Model) -> list[keras.layers.SpectralNormalization]:
    layers = keras_private.layers_of(model)
    return [layer for layer in layers if isinstance(layer, keras.layers.SpectralNormalization) and layer.built]
