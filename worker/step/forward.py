"""One forward pass of a Keras model in training mode on given values, computed as `keras.Model.fit` computes it.

`worker.examine` traces it to find what a model does to its variables, `worker.step` to compute gradients. Nothing is
assigned to the model's own variables.

Shapes: R rows, the product of a dense layer's leading axes, the batch first; I inputs, O outputs.
Threads: one at a time. TensorFlow is allowed here.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import tensorflow as tf


class Scope(keras.StatelessScope):
    """Holds the values of a model's variables during one call, and records which of them the call assigns.

    A variable that is not the model's own (states of a stateful RNN, the state of Keras' global random generator, a
    metric) is assigned as in plain Keras: it lives in this process and is in no file that Keras writes.

    Args:
        variables: Variables of the model.
        values: One tensor a variable, cast to its dtype.

    Attributes:
        assigned: Variables of the model that were assigned, in order, repeated if assigned more than once.
    """

    def __init__(self, variables: Sequence[keras.Variable], values: Sequence[tf.Tensor]) -> None:
        super().__init__(list(zip(variables, values, strict=True)), collect_losses=True)
        self._own = {id(variable) for variable in variables}
        self.assigned: list[keras.Variable] = []

    def add_update(self, update: tuple[keras.Variable, Any]) -> None:
        """Records an assignment and holds its value; called by Keras for every assignment."""
        variable, value = update
        if id(variable) in self._own:
            self.assigned.append(variable)
            self.hold(variable, value)
        else:
            variable._direct_assign(value)

    def hold(self, variable: keras.Variable, value: tf.Tensor) -> None:
        """Replaces a variable's value from here on, without recording an assignment."""
        super().add_update((variable, value))


@dataclass(frozen=True)
class Use:
    """One call of a dense layer y = x W + b.

    Attributes:
        inputs: x, [..., I].
        kernel: The tensor that replaced W [I, O] in this call; nothing else depends on it.
        output: y, [..., O].
    """

    inputs: tf.Tensor
    kernel: tf.Tensor
    output: tf.Tensor

    def factors(self, d: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """X [R, I] and d [R, O], float32, of the kernel's gradient x^T d; `d` is the gradient of the output."""
        x, d = (tf.cast(tf.reshape(t, [-1, t.shape[-1]]), tf.float32) for t in (self.inputs, d))
        return x, d


def forward(
    model: keras.Model, scope: Scope, loss: Callable[[Any, Any], Any], images: tf.Tensor, labels: tf.Tensor
) -> tf.Tensor:
    """The loss of a batch as `keras.Model.fit` computes it: that of the job and those that layers add, in float32.

    Args:
        model: A built model; `training=True` is passed if its `call` takes it.
        scope: The values of all its variables. They hold for `loss`, too, so that it may read a variable.
        loss: `loss(labels [B, C], logits [B, C]) -> scalar`.
        images: [B, S, S, 3].
        labels: [B, C].

    Raises:
        ValueError: The loss is not a scalar, or a Keras mask reaches the output.
    """
    arguments = {"training": True} if model._call_has_training_arg else {}
    with scope:
        logits = model(images, **arguments)
        if getattr(logits, "_keras_mask", None) is not None:
            raise ValueError(
                f"a mask reaches the output of {type(model).__name__} {model.name!r}: plain Keras leaves what is "
                "masked out of the loss, while a job's loss is one number; end the model with something that drops the "
                "mask, as operations of keras.ops do, or take the masking layer out"
            )
        own = tf.convert_to_tensor(loss(labels, tf.cast(logits, tf.float32)))
        if own.shape.rank not in (0, None):
            raise ValueError(f"the job's loss has the shape {own.shape}; return a scalar, for example its mean")
        return tf.add_n([tf.cast(own, tf.float32), *(tf.reduce_sum(tf.cast(a, tf.float32)) for a in model.losses)])


def factorable_layers(model: keras.Model) -> list[keras.layers.Dense]:
    """Returns the dense layers whose kernel's gradient is the product of two tensors that a step computes anyway."""
    return [layer for layer in model._flatten_layers() if type(layer) is keras.layers.Dense and _is_factorable(layer)]


def _is_factorable(layer: keras.layers.Dense) -> bool:
    is_plain = layer.built and not layer.lora_enabled and layer.quantization_mode is None and layer._remat_mode is None
    return bool(
        is_plain
        and layer.activation is keras.activations.linear
        and layer.kernel_regularizer is None
        and layer.kernel.trainable
    )


@contextlib.contextmanager
def noting(
    scope: Scope,
    layers: Collection[keras.layers.Dense],
    watch: Callable[[tf.Tensor], None],
    stand_in: Callable[[tf.Tensor], tf.Tensor] = tf.stop_gradient,
) -> Iterator[dict[str, list[Use]]]:
    """Records the calls of dense layers while the model runs; yields them by the kernel's path.

    During a layer's own call its kernel is a constant, whose gradient is that of the layer's factors. So a gradient
    that reaches the kernel stems from another use of it.

    Args:
        scope: Scope of the model's call.
        layers: Layers to record; see `factorable_layers`.
        watch: Called with each output.
        stand_in: Returns the replacement of a kernel in its layer's own call: a constant, or an identity for a trace.
    """
    uses: dict[str, list[Use]] = {layer.kernel.path: [] for layer in layers}

    def noted(layer: keras.layers.Dense) -> Callable[..., Any]:
        call = layer.call

        def call_and_note(inputs: Any, *arguments: Any, **keywords: Any) -> Any:
            value = scope.get_current_value(layer.kernel)
            constant = stand_in(value)
            scope.hold(layer.kernel, constant)
            try:
                output = call(inputs, *arguments, **keywords)
            finally:
                scope.hold(layer.kernel, value)
            watch(output)
            uses[layer.kernel.path].append(Use(inputs, constant, output))
            return output

        return call_and_note

    for layer in layers:
        object.__setattr__(layer, "call", noted(layer))
    try:
        yield uses
    finally:
        for layer in layers:
            object.__delattr__(layer, "call")


def infer(model: keras.Model, images: Any) -> Any:
    """Returns a model's output for images in inference mode, called as `keras.Model.predict` calls it."""
    return model(images, training=False) if model._call_has_training_arg else model(images)


def refuse_assigned(model: keras.Model, assigned: Collection[keras.Variable]) -> None:
    """Raises `ValueError` if a trained variable is among those that a training call assigns."""
    trainable = {id(variable) for variable in model.trainable_variables}
    for variable in assigned:
        if id(variable) in trainable:
            raise ValueError(
                f"{variable.path} is trained, and a training call assigns it ({_owners(model, variable)}): workers "
                "push gradients of trained variables and no values, so the assignment would be lost; take that layer "
                "out, or write one whose `call` computes with the changed value and does not assign it"
            )


def _owners(model: keras.Model, variable: keras.Variable) -> str:
    """The layers that hold a variable, outermost first, in words."""
    holding = [
        f"{type(layer).__name__} {layer.name!r}"
        for layer in model._flatten_layers(include_self=False)
        if any(own is variable for own in layer.variables)
    ]
    return " in ".join(reversed(holding)) if holding else f"{type(model).__name__} {model.name!r}"
