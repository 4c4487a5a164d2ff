"""What is used of Keras' private parts, and what happens without them."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers

from downpour.model import keras_private


class Block(layers.Layer):
    """A dense layer in a list, as Keras tracks it."""

    def __init__(self, **more: Any) -> None:
        super().__init__(**more)
        self.parts = [layers.Dense(3, name="inner")]

    def call(self, x: Any) -> Any:
        return self.parts[0](x)


def nested() -> keras.Model:
    images = keras.Input((4,))
    within = keras.Sequential([keras.Input((4,)), layers.Dense(4, name="deep")], name="within")
    return keras.Model(images, layers.Dense(2, name="head")(Block(name="block")(within(images))), name="net")


@pytest.fixture
def changed_keras(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A Keras whose private method does something else than that of today."""
    flatten = keras.Layer._flatten_layers

    def not_within(self: Any, include_self: bool = True, recursive: bool = True) -> list[Any]:
        found: list[Any] = flatten(self, include_self, recursive=False)
        return found

    monkeypatch.setattr(keras.Layer, "_flatten_layers", not_within)
    keras_private._lists_inner_layers.cache_clear()
    yield
    keras_private._lists_inner_layers.cache_clear()


def names(found: list[Any]) -> set[str]:
    return {layer.name for layer in found if not isinstance(layer, layers.InputLayer)}


def test_all_layers_are_listed_outer_ones_first() -> None:
    found = keras_private.layers_of(nested())
    assert names(found) == {"net", "within", "deep", "block", "inner", "head"}
    order = [layer.name for layer in found]
    assert (
        order[0] == "net"
        and order.index("within") < order.index("deep")
        and order.index("block") < order.index("inner")
    )
    assert "net" not in names(keras_private.layers_of(nested(), include_self=False))


def test_a_keras_that_lists_no_inner_layers_is_searched_in_public(
    changed_keras: None, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("WARNING", "absl"):
        found = [keras_private.layers_of(nested()) for _ in range(2)]
    assert names(found[0]) == {"net", "within", "deep", "block", "head"}
    assert caplog.text.count("does not list the layers within layers") == 1


def test_the_check_takes_no_name_and_draws_nothing() -> None:
    """Models are built and traced around it, and must come out as without it."""
    keras.utils.set_random_seed(1)
    keras.utils.clear_session()
    state = random.getstate(), np.random.get_state()[1].tolist()
    keras_private._lists_inner_layers.cache_clear()
    assert keras_private._lists_inner_layers()
    assert (random.getstate(), np.random.get_state()[1].tolist()) == state
    assert [layers.Identity().name, layers.TimeDistributed(layers.Identity()).name] == ["identity", "time_distributed"]
    assert keras.Sequential().name == "sequential"


def test_layers_that_are_computed_twice_are_known() -> None:
    with keras.RematScope(mode="full"):
        again = layers.Dense(2, name="again")
    assert keras_private.is_rematerialized(again) and not keras_private.is_rematerialized(layers.Dense(2, name="once"))
    assert keras_private.is_rematerialized(object()), "nothing is known of it"


def test_masks_are_seen() -> None:
    images = keras.Input((3, 2))
    model = keras.Model(images, layers.Masking(name="mask")(images))
    assert keras_private.mask_of(model(np.zeros((1, 3, 2), np.float32))) is not None
    assert keras_private.mask_of(np.zeros(3)) is None


@pytest.mark.parametrize("is_known", [True, False])
def test_a_variable_is_assigned_in_spite_of_a_stateless_scope(is_known: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    variable = keras.Variable(np.zeros(2, np.float32), name="state")
    if not is_known:
        for kind in type(variable).__mro__:
            if "_direct_assign" in vars(kind):
                monkeypatch.delattr(kind, "_direct_assign")
    with keras.StatelessScope():
        keras_private.assign_now(variable, np.ones(2, np.float32))
    assert variable.numpy().tolist() == [1, 1]
