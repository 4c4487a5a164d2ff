"""Weights through real Keras files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import keras
import numpy as np
import pytest

from downpour.model import weights
from downpour.model.vision.resnet import ResNet

SMALL = ResNet(depth=18, width=2, stem="3x3/2")
ENDINGS = (weights.KERAS, weights.WEIGHTS, weights.LEGACY)


def filled(num_labels: int) -> keras.Model:
    """The small network; the values of each variable are its number in the network and a little more."""
    model = SMALL.build(8, num_labels)
    for i, variable in enumerate(model.variables):
        variable.assign(i + np.linspace(0, 0.5, variable.numpy().size).reshape(variable.shape))
    return model


def dense(dtype: str = "float32") -> keras.Model:
    return keras.Sequential([keras.Input((3,)), keras.layers.Dense(4, name="head", dtype=dtype)], name="m")


def names_of(model: keras.Model) -> list[str]:
    return [variable.path for variable in model.variables]


@pytest.fixture
def write(tmp_path: Path) -> Any:
    """`write(model, ending)`: the path of its file."""

    def write(model: keras.Model, ending: str) -> Path:
        weights.save(model, tmp_path / f"model{ending}", ending)
        return tmp_path / f"model{ending}"

    return write


@pytest.mark.parametrize(
    ("name", "ending"),
    [
        ("a.keras", ".keras"),
        ("runs.h5/a.weights.h5", ".weights.h5"),
        ("a.h5", ".h5"),
        ("a.hdf5", None),
        ("a.keras/b", None),
        ("folder", None),
    ],
)
def test_endings(name: str, ending: str | None) -> None:
    assert weights.file_ending(name) == ending


@pytest.mark.parametrize("ending", ENDINGS)
def test_every_variable_is_read_by_its_name(write: Any, ending: str) -> None:
    """The reader's network has another head: only names and layers tell which value is whose."""
    source = filled(num_labels=5)
    found = weights.read(write(source, ending), SMALL.build(8, 7), names_of(source))
    assert found.keys() == set(names_of(source))
    for variable in source.variables:
        np.testing.assert_array_equal(found[variable.path], variable.numpy(), variable.path)


@pytest.mark.parametrize("ending", ENDINGS)
def test_only_what_is_asked_for_is_read(write: Any, ending: str) -> None:
    assert weights.read(write(dense(), ending), dense(), {"m/head/bias", "no/such"}).keys() == {"m/head/bias"}


@pytest.mark.parametrize("ending", ENDINGS)
def test_layers_within_layers_are_read(write: Any, ending: str) -> None:
    def build() -> keras.Model:
        inner = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2, name="second")], name="inner")
        return keras.Sequential([keras.Input((3,)), keras.layers.Dense(4, name="first"), inner], name="outer")

    source = build()
    found = weights.read(write(source, ending), build(), names_of(source))
    assert len(found) == 4
    for variable in source.variables:
        np.testing.assert_array_equal(found[variable.path], variable.numpy())


def test_a_file_of_tf_keras_2_is_read(tmp_path: Path) -> None:
    """As published with Keras's applications: weights alone, names of TensorFlow, many names in pieces."""
    with h5py.File(tmp_path / "old.h5", "w") as file:
        file.attrs["layer_names0"] = [b"first"]
        file.attrs["layer_names1"] = [b"second"]
        for layer in ("first", "second"):
            group = file.create_group(layer)
            group.attrs["weight_names"] = [f"{layer}/kernel:0".encode()]
            group[f"{layer}/kernel:0"] = np.full((2, 2), len(layer), np.float32)
    found = weights.read(tmp_path / "old.h5", SMALL.build(8, 5), ["first/kernel", "second/kernel"])
    assert {name: value.tolist() for name, value in found.items()} == {
        "first/kernel": [[5, 5], [5, 5]],
        "second/kernel": [[6, 6], [6, 6]],
    }


@pytest.mark.parametrize("ending", [weights.KERAS, weights.WEIGHTS])
def test_bfloat16_is_read_as_the_same_numbers(write: Any, ending: str) -> None:
    source = dense("bfloat16")
    found = weights.read(write(source, ending), dense("bfloat16"), names_of(source))
    for variable in source.variables:
        np.testing.assert_array_equal(found[variable.path], variable.numpy().astype(np.float32))


def two_alike() -> keras.Model:
    """A model in a model, each with a layer `head`."""
    inner = keras.Sequential([keras.Input((3,)), keras.layers.Dense(3, name="head")], name="same")
    return keras.Sequential([keras.Input((3,)), keras.layers.Dense(3, name="head"), inner], name="same")


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_name_that_two_variables_have_is_refused(write: Any, ending: str) -> None:
    with pytest.raises(ValueError, match=r"has two variables 'same/head/kernel'; give a file whose layers have names"):
        weights.read(write(two_alike(), ending), two_alike(), ["same/head/kernel"])


def test_a_layer_with_another_number_of_variables_is_refused(write: Any) -> None:
    """Its variables are only numbered: without gamma, beta would be taken for it."""

    def build(scale: bool) -> keras.Model:
        norm = keras.layers.BatchNormalization(scale=scale, name="norm")
        return keras.Sequential([keras.Input((3,)), norm], name="m")

    path = write(build(scale=False), weights.WEIGHTS)
    with pytest.raises(ValueError, match=r"has 3 variables in layer 'norm', the model has 4: .*/norm/gamma, .* alike"):
        weights.read(path, build(scale=True), ["m/norm/gamma"])


def test_a_file_without_names_of_layers_is_refused(write: Any) -> None:
    path = write(dense(), weights.WEIGHTS)
    with h5py.File(path, "r+") as file:
        file.visititems(lambda _, item: item.attrs.pop("name", None) and None)
    with pytest.raises(ValueError, match=r"has no names of layers, .*; save that model as .keras instead"):
        weights.read(path, dense(), ["m/head/bias"])


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("content", [None, b"", b"no model", b"cut"])
def test_a_file_that_cannot_be_read_is_refused(write: Any, ending: str, content: bytes | None) -> None:
    path = write(dense(), ending)
    whole = path.read_bytes()
    path.unlink()
    if content is not None:
        path.write_bytes(whole[: len(whole) // 2] if content == b"cut" else content)
    with pytest.raises(ValueError, match=rf"model{ending} cannot be .*; give another file"):
        weights.read(path, dense(), ["m/head/bias"])


def test_a_variance_that_stale_differences_made_negative_is_assigned_as_zero() -> None:
    model = keras.Sequential([keras.Input((2,)), keras.layers.BatchNormalization(name="norm")])
    norm, value = model.layers[0], np.float32([-0.1, 2])
    weights.assign(model, {norm.moving_variance.path: value, norm.moving_mean.path: value})
    assert norm.moving_variance.numpy().tolist() == [0, 2]
    np.testing.assert_array_equal(norm.moving_mean.numpy(), value)
