"""What a model has of its user's own is found, and what other processes cannot load is refused by layer and name."""

from __future__ import annotations

import types
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers

from downpour.model.own_objects import own_classes, own_objects
from downpour.model.vision.resnet import ResNet


def wave(x: Any) -> Any:
    return keras.ops.sin(x)


def doubled(x: Any) -> Any:
    return 2 * x


def relu(x: Any) -> Any:
    return keras.ops.abs(x)


def split(x: Any) -> Any:
    return keras.ops.expand_dims(x, -1)


class Near(keras.regularizers.Regularizer):
    def __call__(self, x: Any) -> Any:
        return keras.ops.sum((x - 1) ** 2)

    def get_config(self) -> dict[str, Any]:
        return {}


class Tenth(keras.initializers.Initializer):
    def __call__(self, shape: Any, dtype: Any = None, **_: Any) -> Any:
        return keras.ops.full(shape, 0.1, dtype)


class Capped(keras.constraints.Constraint):
    def __call__(self, w: Any) -> Any:
        return keras.ops.minimum(w, 1.0)


@keras.saving.register_keras_serializable(package="tests")
class Applied(layers.Layer):
    """Keeps a function under another name than its argument's."""

    def __init__(self, function: Callable[[Any], Any], **more: Any) -> None:
        super().__init__(**more)
        self.kept = function

    def call(self, inputs: Any) -> Any:
        return self.kept(inputs)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "function": keras.saving.serialize_keras_object(self.kept)}

    @classmethod
    def from_config(cls, config: Any) -> Any:
        return cls(keras.saving.deserialize_keras_object(config.pop("function")), **config)


class Unsaved(layers.Layer):
    def __init__(self, values: np.ndarray) -> None:
        super().__init__(name="unsaved")
        self.values = values


class NoMore(layers.Layer):
    def __init__(self, name: str = "nomore") -> None:
        super().__init__(name=name)

    def call(self, inputs: Any) -> Any:
        return inputs

    def get_config(self) -> dict[str, Any]:
        return super().get_config()


class Off(Near):
    """Has an argument that Near's `get_config` does not return."""

    def __init__(self, by: float = 1.0) -> None:
        self.by = by


class OwnLoss(keras.losses.Loss):
    def call(self, y_true: Any, y_pred: Any) -> Any:
        return keras.ops.mean((y_true - y_pred) ** 2, axis=-1)


def distance(y_true: Any, y_pred: Any) -> Any:
    return keras.ops.mean(keras.ops.abs(y_true - y_pred), axis=-1)


def model_of(*inner: Any, **compiled: Any) -> keras.Model:
    model = keras.Sequential([keras.Input((3,)), *inner, layers.Dense(1)], name="model")
    model.compile(**({"optimizer": "sgd", "loss": "mse"} | compiled))
    return model


def everything() -> keras.Model:
    hidden = layers.Dense(
        4, activation=wave, kernel_initializer=Tenth(), kernel_regularizer=Near(), bias_constraint=Capped()
    )
    cosine = layers.Dense(4, activation=keras.ops.cos)
    inner = [hidden, layers.Lambda(doubled), cosine, Applied(split), layers.Flatten()]
    return model_of(*inner, loss=OwnLoss(), metrics=[keras.metrics.MeanMetricWrapper(distance), "mae"])


def test_what_keras_cannot_find_is_found_and_is_enough_to_load_a_model(tmp_path: Path) -> None:
    model = everything()
    found = {own.name: own for own in own_objects(model)}
    assert set(found) == {
        "wave", "Tenth", "Near", "Capped", "doubled", "cos", "tests>Applied", "split", "OwnLoss", "distance",
    }  # fmt: skip
    assert found["wave"].place == f"activation of Dense {model.layers[0].name!r}"
    assert found["distance"].place == "fn of metrics of compile()"
    model.save(tmp_path / "model.keras")
    with pytest.raises((TypeError, ValueError)):
        keras.saving.load_model(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras", {name: own.value for name, own in found.items()})
    x, y = np.random.default_rng(0).standard_normal((2, 5, 3)).astype("f")
    assert loaded.evaluate(x, y[:, :1], verbose=0) == model.evaluate(x, y[:, :1], verbose=0)


def test_a_model_of_keras_has_nothing_of_its_own() -> None:
    inner = [layers.Dense(4, activation="gelu", kernel_regularizer="l2"), layers.Dense(2, keras.activations.relu)]
    model = model_of(*inner, metrics=["accuracy", keras.metrics.MeanSquaredError()], loss=keras.losses.Huber())
    assert own_objects(model) == []
    assert own_classes(ResNet(depth=18, width=2, stem="3x3/2").build(8, 5)) == []
    assert own_classes(everything()) == [f"{__name__}.Applied"]


def _local() -> Any:
    def inner(x: Any) -> Any:
        return x

    return inner


def _elsewhere() -> Any:
    """Another function `wave`, of another file."""
    module = types.ModuleType("elsewhere")
    exec("def wave(x):\n    return -x\n", module.__dict__)
    return module.wave


def test_an_argument_that_has_its_default_may_be_left_out() -> None:
    found = own_objects(model_of(layers.Dense(3, kernel_regularizer=Off())))
    assert [own.name for own in found] == ["Off"]


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (lambda: layers.Dense(3, activation=lambda x: x, name="hidden"), "activation of Dense 'hidden' is .*<lambda>"),
        (lambda: layers.Lambda(lambda x: x, name="twice"), "function of Lambda 'twice' is .*<lambda>, a lambda or loc"),
        (lambda: layers.LSTM(3, activation=lambda x: x, name="rnn"), "activation of LSTM.* is .*<lambda>"),
        (lambda: layers.Dense(3, activation=relu, name="hidden"), "'hidden' is a function relu of .* Keras has one of"),
        (lambda: Unsaved(np.zeros(3)), "Unsaved 'unsaved': its class Unsaved has no get_config"),
        (lambda: layers.Dense(3, partial(wave), name="hidden"), "activation of Dense 'hidden' is a partial, which"),
        (
            lambda: Applied(_local(), name="applied"),
            "function of Applied 'applied' is _local.*inner, a lambda or lo",
        ),
        (lambda: NoMore(), "NoMore 'nomore': NoMore.__init__ does not take trainable, dtype, which its get_config"),
        (lambda: layers.Dense(3, kernel_regularizer=Off(3.0), name="hidden"), "Off leaves out the argument by"),
        (lambda: [layers.Dense(3, wave), layers.Dense(3, _elsewhere())], "two objects that are both named wave, of"),
    ],
)
def test_what_other_processes_cannot_load_is_refused(layer: Callable[[], Any], message: str) -> None:
    made = layer()
    inner = made if isinstance(made, list) else [made]
    if isinstance(inner[0], layers.LSTM):
        inner = [layers.Reshape((3, 1)), *inner]
    with pytest.raises(ValueError, match=message):
        own_objects(model_of(*inner))
