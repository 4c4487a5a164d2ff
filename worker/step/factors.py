"""Factors of the gradients of dense layers: for y = x W the gradient of W is x^T d, with d the gradient of y.

No layer is changed or wrapped to find x and y: the traced graph shows which operations read a kernel. If the only one
is a product y = x W in that graph, the gradient is that of the factors alone. Anything else (a penalty, a tied layer, a
loop, another implementation of `keras.layers.Dense`) is seen there, too, and the gradient is pushed dense.

Shapes: R rows, the product of a dense layer's leading axes, the batch first; I inputs, O outputs.
Threads: one at a time. TensorFlow is allowed here.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import keras
import tensorflow as tf

from downpour.model import keras_private
from downpour.ps.layout import Factored


@dataclass(frozen=True)
class Product:
    """The product y = x W of a dense layer's call.

    Attributes:
        inputs: x, [R, I].
        output: y, [R, O].
    """

    inputs: tf.Tensor
    output: tf.Tensor

    def factors(self, d: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns x [R, I] and d [R, O], float32, of the kernel's gradient x^T d; `d` is the gradient of the output."""
        return tf.cast(self.inputs, tf.float32), tf.cast(d, tf.float32)


@dataclass(frozen=True)
class Uses:
    """What reads a kernel in a graph.

    Attributes:
        products: Products y = x W in the graph itself, not in those of its loops and conditions.
        has_others: Whether anything else reads it.
    """

    products: tuple[Product, ...]
    has_others: bool

    @property
    def only(self) -> Product | None:
        """The one product, if nothing else reads the kernel and the number of its rows is known."""
        if self.has_others or len(self.products) != 1 or None in self.products[0].inputs.shape:
            return None
        return self.products[0]


def uses_of(kernel: tf.Tensor) -> Uses:
    """Returns what reads a kernel [I, O], cast or not, in its graph as traced so far."""
    readers = list(_readers(kernel))
    products = [Product(op.inputs[0], op.outputs[0]) for op, value in readers if _is_product(op, value)]
    return Uses(tuple(products), len(products) < len(readers))


def only_product(name: str, kernel: tf.Tensor) -> Product:
    """Returns the product that a kernel is used in.

    Raises:
        ValueError: It is used in another way, too, or not in exactly one product; with its name.
    """
    uses = uses_of(kernel)
    if uses.has_others:
        raise ValueError(
            f"{name} is used outside its own layer, so its gradient is not that of its factors alone; set "
            "exchange.factors=False"
        )
    if len(uses.products) != 1:
        how = "more than once" if uses.products else "nowhere"
        raise ValueError(f"{name} is used {how} in a step; set exchange.factors=False")
    return uses.products[0]


def factorable_layers(model: keras.Model) -> list[keras.layers.Dense]:
    """Returns the dense layers whose kernel's gradient is the product of two tensors that a step computes anyway."""
    layers = keras_private.layers_of(model)
    return [layer for layer in layers if type(layer) is keras.layers.Dense and _is_factorable(layer)]


def columns(d: tf.Tensor, group: Factored) -> tf.Tensor:
    """Returns a shard's columns of d [R, O], in the order of its ranges."""
    parts = [d[:, r.begin : r.stop] if r.axis == 1 else d for r in group.ranges]
    return parts[0] if len(parts) == 1 else tf.concat(parts, 1)


def product_norm(x: tf.Tensor, d: tf.Tensor) -> tf.Tensor:
    """Returns |x^T d| from [R, R] products alone: its square is the sum of (x x^T) * (d d^T)."""
    square = tf.reduce_sum(tf.matmul(x, x, transpose_b=True) * tf.matmul(d, d, transpose_b=True))
    # Rounding may make a square that is nearly zero negative.
    return tf.sqrt(tf.where(square < 0, tf.zeros_like(square), square))


def _is_factorable(layer: keras.layers.Dense) -> bool:
    is_plain = layer.built and not layer.lora_enabled and layer.quantization_mode is None
    return bool(
        is_plain
        and not keras_private.is_rematerialized(layer)
        and layer.activation is keras.activations.linear
        and layer.kernel_regularizer is None
        and layer.kernel.trainable
    )


def _readers(value: tf.Tensor) -> Iterator[tuple[tf.Operation, tf.Tensor]]:
    """Yields the operations that read a value, casts followed, each with the tensor that it reads."""
    for op in value.consumers():
        if op.type == "Cast":
            yield from _readers(op.outputs[0])
        else:
            yield op, value


def _is_product(op: tf.Operation, kernel: tf.Tensor) -> bool:
    """Whether an operation that reads a kernel W is y = x W."""
    if op.type != "MatMul" or op.get_attr("transpose_a") or op.get_attr("transpose_b"):
        return False
    x, w = op.inputs
    return bool(w.name == kernel.name and x.name != kernel.name)
