"""What the kinds of layers share while a model is drawn: random numbers, names, shapes, and the record of it all."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import keras
from keras import layers

MOST_FEATURES = 220  # of a flat tensor; more is pooled first, so that models stay small

Draw = Callable[["Sketch", Any], Any]


class Sketch:
    """A model while it is drawn.

    Args:
        rng: Of this model; every draw comes from it.
        images: The model's input.
        policies: Dtype policies that single layers may be given.

    Attributes:
        recipe: One line for each layer, with its arguments.
    """

    def __init__(self, rng: random.Random, images: Any, policies: tuple[str, ...] = ()) -> None:
        self.rng, self.images = rng, images
        self.recipe: list[str] = []
        self._policies = policies
        self._num_layers = 0

    def chance(self, probability: float) -> bool:
        return self.rng.random() < probability

    def pick(self, *values: Any) -> Any:
        return self.rng.choice(values)

    def name(self, kind: str) -> str:
        self._num_layers += 1
        return f"{kind.lower()}{self._num_layers}"

    def layer(self, kind: Any, *positional: Any, **arguments: Any) -> Any:
        """A layer with a name of its own, written into the recipe."""
        if self._policies and kind is not keras.Sequential and self.chance(0.4):
            arguments.setdefault("dtype", self.pick(*self._policies))
        given = [_described(value) for value in positional]
        given += [f"{key}={_described(value)}" for key, value in arguments.items()]
        name = self.name(kind.__name__)
        self.recipe.append(f"{name}: {kind.__name__}({', '.join(given)})")
        return kind(*positional, name=name, **arguments)

    def note(self, text: str) -> None:
        self.recipe.append(text)

    def units(self) -> int:
        return int(self.pick(1, 3, 8, 24, 40))

    def activation(self) -> str | None:
        return str(self.pick("relu", "tanh", "gelu", "sigmoid", "softplus", "swish")) if self.chance(0.4) else None

    def kernel_arguments(self, depthwise: bool = False) -> dict[str, Any]:
        """Arguments that all layers with a kernel take: each is mostly left out."""
        kernel = "depthwise" if depthwise else "kernel"
        found: dict[str, Any] = {}
        if self.chance(0.25):
            found["use_bias"] = False
        if activation := self.activation():
            found["activation"] = activation
        if self.chance(0.12):
            found[f"{kernel}_regularizer"] = self.pick(
                keras.regularizers.L2(1e-2), keras.regularizers.L1(1e-3), keras.regularizers.L1L2(1e-3, 1e-3)
            )
        if self.chance(0.06):
            found["bias_regularizer"] = keras.regularizers.L2(1e-2)
        if self.chance(0.08):
            found["activity_regularizer"] = keras.regularizers.L2(1e-3)
        if self.chance(0.04):
            found[f"{kernel}_constraint"] = keras.constraints.NonNeg()
        if self.chance(0.05):
            found["bias_initializer"] = keras.initializers.RandomUniform(-0.5, 0.5)
        if self.chance(0.06):
            found["trainable"] = False
        return found

    def to_rank(self, x: Any, ranks: tuple[int, ...]) -> Any:
        """`x` [B, ...] as a tensor of one of these ranks."""
        rank = len(x.shape)
        if rank in ranks:
            return x
        wanted = self.rng.choice(ranks)
        if wanted == 2:
            return self.flat(x)
        features = self.flat(x).shape[1]
        x = self.flat(x)
        width = next(n for n in (4, 3, 2, 1) if features % n == 0)
        if wanted == 3:
            return layers.Reshape((width, features // width), name=self.name("steps"))(x)
        return layers.Reshape((width, 1, features // width), name=self.name("map"))(x)

    def flat(self, x: Any) -> Any:
        """`x` as [B, F], with F at most `MOST_FEATURES`."""
        rank, features = len(x.shape), 1
        for size in x.shape[1:]:
            features *= size
        if features > MOST_FEATURES and rank > 2:
            pool = {3: layers.GlobalAveragePooling1D, 4: layers.GlobalAveragePooling2D, 5: layers.GlobalMaxPooling3D}
            return self.flat(pool[rank](name=self.name("pool"))(x))
        return x if rank == 2 else layers.Flatten(name=self.name("flat"))(x)


def _described(value: Any) -> str:
    if isinstance(value, keras.layers.Layer):
        return value.name
    if isinstance(value, list):
        return f"[{', '.join(map(_described, value))}]"
    config = getattr(value, "get_config", None)
    return f"{type(value).__name__}({config()})" if config else repr(value)
