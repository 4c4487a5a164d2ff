"""One forward pass of a Keras model in training mode on given values, computed as `keras.Model.fit` computes it.

`examine` traces it to find what a model does to its variables, `step` to compute gradients. Nothing is assigned to the
model's own variables.

Threads: one at a time. TensorFlow is allowed here.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Sequence
from typing import Any

import keras
import tensorflow as tf

from downpour.model import keras_private
from downpour.worker.step.assigned import Held, assigned_kernels


class Scope(keras.StatelessScope):
    """Holds the values of a model's variables during one call, and records which of them the call assigns.

    A variable that is not the model's own (states of a stateful RNN, the state of Keras' global random generator, a
    metric) is assigned as in plain Keras: it lives in this process and is in no file that Keras writes.

    Args:
        variables: Variables of the model.
        values: One tensor a variable, cast to its dtype.
        held: Called with a variable of the model and the tensor that it is assigned; returns the tensor that the call
            computes with from then on.

    Attributes:
        assigned: Variables of the model that were assigned, in order, repeated if assigned more than once.
    """

    def __init__(
        self,
        variables: Sequence[keras.Variable],
        values: Sequence[tf.Tensor],
        held: Held = lambda _, value: value,
    ) -> None:
        super().__init__(list(zip(variables, values, strict=True)), collect_losses=True)
        self._own = {id(variable) for variable in variables}
        self._held = held
        self.assigned: list[keras.Variable] = []

    def add_update(self, update: tuple[keras.Variable, Any]) -> None:
        """Records an assignment and holds its value; called by Keras for every assignment."""
        variable, value = update
        if id(variable) in self._own:
            self.assigned.append(variable)
            super().add_update((variable, self._held(variable, value)))
        else:
            keras_private.assign_now(variable, value)


# loss(labels, outputs) -> scalar; None for the loss that the model was compiled with.
Loss = Callable[[Any, Any], Any] | None


def forward(
    model: keras.Model, scope: Scope, loss: Loss, inputs: Any, labels: Any, sample_weight: Any = None
) -> tf.Tensor:
    """The loss of a batch as `keras.Model.fit` computes it: that of the job and those that layers add, in float32.

    A compiled model computes both in its `compute_loss`, which knows sample weights, masks and several outputs.

    Args:
        model: A built model; `training=True` is passed if its `call` takes it.
        scope: The values of all its variables. They hold for `loss`, too, so that it may read a variable.
        loss: Loss of the job, of labels and float32 outputs; None for that of the compiled model.
        inputs: x of the batch, as the model takes it: a nest of tensors [B, ...].
        labels: y of the batch.
        sample_weight: Weights of the examples; None for none.

    Raises:
        ValueError: The job's loss is not a scalar, or there are sample weights or a Keras mask, which it does not know.
    """
    arguments = {"training": True} if _takes_training(model) else {}
    with scope:
        outputs = model(inputs, **arguments)
        if loss is None:
            found = model.compute_loss(x=inputs, y=labels, y_pred=outputs, sample_weight=sample_weight)
            return tf.cast(found, tf.float32)
        if sample_weight is not None:
            raise ValueError(
                "the data give sample weights, which a job's loss of labels and outputs does not take; compile the "
                "model with a Keras loss and leave out the job's, or leave the weights out of the data"
            )
        if any(keras_private.mask_of(output) is not None for output in tf.nest.flatten(outputs)):
            raise ValueError(
                f"a mask reaches the output of {type(model).__name__} {model.name!r}: plain Keras leaves what is "
                "masked out of the loss, while a job's loss is one number; end the model with something that drops the "
                "mask, as operations of keras.ops do, or take the masking layer out"
            )
        own = tf.convert_to_tensor(loss(labels, tf.nest.map_structure(in_float32, outputs)))
        if own.shape.rank not in (0, None):
            raise ValueError(f"the job's loss has the shape {own.shape}; return a scalar, for example its mean")
        return tf.add_n([tf.cast(own, tf.float32), *(tf.reduce_sum(tf.cast(a, tf.float32)) for a in model.losses)])


def infer(model: keras.Model, inputs: Any) -> Any:
    """Returns a model's outputs in inference mode, called as `keras.Model.predict` calls it."""
    return model(inputs, training=False) if _takes_training(model) else model(inputs)


def refuse_assigned(model: keras.Model, assigned: Collection[keras.Variable]) -> None:
    """Raises `ValueError` if a trained variable is among those that a training call assigns, but for `assigned`."""
    trainable = {id(variable) for variable in model.trainable_variables}
    trainable -= {id(kernel) for kernel in assigned_kernels(model)}
    for variable in assigned:
        if id(variable) in trainable:
            raise ValueError(
                f"{variable.path} is trained, and a training call assigns it ({_owners(model, variable)}): workers "
                "push gradients of trained variables and no values, so the assignment would be lost; take that layer "
                "out, or write one whose `call` computes with the changed value and does not assign it"
            )


def in_float32(output: tf.Tensor) -> tf.Tensor:
    """Returns an output of a model in float32 if it is of another floating-point type."""
    return tf.cast(output, tf.float32) if output.dtype.is_floating else output


def _takes_training(model: keras.Model) -> bool:
    return "training" in inspect.signature(model.call).parameters


def _owners(model: keras.Model, variable: keras.Variable) -> str:
    """The layers that hold a variable, outermost first, in words."""
    holding = [
        f"{type(layer).__name__} {layer.name!r}"
        for layer in keras_private.layers_of(model, include_self=False)
        if any(own is variable for own in layer.variables)
    ]
    return " in ".join(reversed(holding)) if holding else f"{type(model).__name__} {model.name!r}"
