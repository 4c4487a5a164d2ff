"""What is decided of a layout before it is used."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest

from downpour.launch.job import Job, mistakes, recipe
from downpour.launch.job.build import build, unsendable
from downpour.launch.local import preflight
from downpour.model.data import Examples
from downpour.model.vision.resnet import ResNet
from downpour.proto.http2.assembly import MAX_FACTORS_BYTES
from downpour.ps.layout import FACTORED, Slicing, Variable, lay_out
from downpour.ps.policy.rules import SGD
from downpour.ps.policy.schedules import Constant

_VARIABLES = (Variable("head/kernel", (2048, 18291), FACTORED), Variable("small/kernel", (512, 600), FACTORED))


def _rows(batch_size: int) -> dict[str, int]:
    return {variable.name: batch_size for variable in _VARIABLES}


@dataclass(frozen=True)
class Unnamed:
    """A network that leaves names and data format to Keras."""

    def build(self, image_size: int, num_labels: int) -> Any:
        import keras

        layers = [keras.layers.Conv2D(4, 3), keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(num_labels)]
        return keras.Sequential([keras.Input((image_size, image_size, 3)), *layers])


@pytest.mark.parametrize(
    ("batch_size", "num_shards", "slices", "itemsize", "names"),
    [
        (32, 1, 1, 4, set()),
        (256, 1, 1, 4, {"head/kernel"}),
        (256, 17, 50, 4, set()),  # each shard gets its columns only
        (256, 1, 1, 2, set()),
        (4096, 1, 1, 4, {"head/kernel", "small/kernel"}),
    ],
)
def test_factors_that_are_too_large_for_a_message_are_named(
    batch_size: int, num_shards: int, slices: int, itemsize: int, names: set[str]
) -> None:
    layout = lay_out(_VARIABLES, num_shards, (Slicing("head/*", slices),) if slices > 1 else ())
    assert unsendable(layout, _rows(batch_size), itemsize) == names


def test_layers_without_a_name_are_numbered_alike_in_every_build() -> None:
    """A second export in a process, say, finds the names that a checkpoint has."""
    job = replace(recipe.load("quickstart"), model=Unnamed(), slicing=())
    layouts = [build(job)[1] for _ in range(2)]
    assert layouts[0].fingerprint == layouts[1].fingerprint
    assert [variable.name for variable in layouts[1].variables][:2] == [
        "sequential/conv2d/kernel",
        "sequential/conv2d/bias",
    ]


def test_a_model_is_built_for_the_images_that_it_gets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever data format Keras is set to."""
    import keras

    monkeypatch.setattr("keras.src.backend.config._IMAGE_DATA_FORMAT", "channels_first")
    assert keras.config.image_data_format() == "channels_first"
    kernels = [v.shape for v in build(replace(recipe.load("quickstart"), model=Unnamed(), slicing=()))[1].variables]
    assert kernels[0] == (3, 3, 3, 4)
    monkeypatch.setattr("keras.src.backend.config._IMAGE_DATA_FORMAT", "channels_first")
    assert ResNet(depth=18, width=2).build(16, 5).output_shape == (None, 5)


def _two_outputs(**arguments: Any) -> Any:
    def model() -> Any:
        import keras

        inputs = keras.Input((4,))
        outputs = {name: keras.layers.Dense(size, name=name)(inputs) for name, size in (("kind", 3), ("size", 1))}
        made = keras.Model(inputs, outputs)
        made.compile(optimizer="sgd", **arguments)
        return made

    return model


@pytest.mark.parametrize(
    ("loss", "more", "targets"),
    [
        ({"kind": "mse", "sise": "mse"}, {}, {"kind": (3,), "size": (1,)}),  # a name that no output has
        ({"kind": "mse", "size": "mse"}, {}, {"kind": (3,), "sise": (1,)}),
        ({"kind": "categorical_crossentropy", "size": "mse"}, {}, {"kind": (5,), "size": (1,)}),
        (None, {}, {"kind": (3,), "size": (1,)}),
        ({"kind": "mse", "size": "mse"}, {"metrics": {"kidn": ["mae"]}}, {"kind": (3,), "size": (1,)}),
    ],
)
def test_a_loss_that_does_not_fit_is_refused_with_names_and_shapes_of_both(
    loss: Any, more: dict[str, Any], targets: dict[str, tuple[int, ...]]
) -> None:
    y = {name: np.zeros((8, *shape), np.float32) for name, shape in targets.items()}
    model = _two_outputs(loss=loss, **more)
    job = Job(
        name="two", model=model, data=Examples((np.zeros((8, 4), np.float32), y)), loss=None, rule=SGD(),
        schedule=Constant(0.01), num_steps=1, batch_size=4,
    )  # fmt: skip
    with pytest.raises(ValueError) as refusal:
        build(job)
    for name, shape in targets.items():
        assert f"y['{name}']: {(2, *shape)} float32" in str(refusal.value), refusal.value
    for part in ("output['kind']: (2, 3) float32", "output['size']: (2, 1) float32"):
        assert part in str(refusal.value), refusal.value


@pytest.mark.parametrize(
    ("loss", "shape", "outputs", "message"),
    [
        ("mse", (), 3, r"y: \(2,\) .*: \(2, 3\) float32; give targets of the shape of the outputs: "),
        ("mse", (), 2, r"y: \(3,\) .*: \(3, 2\) float32; give targets of the shape of the outputs: "),
        ("categorical_crossentropy", (), 3, "; numbers of classes need .*; or give one-hot"),
        ("categorical_crossentropy", (1,), 3, "; numbers of classes need .*; or give one-hot"),
        ("sparse_categorical_crossentropy", (3,), 3, "; one-hot targets need categorical_crossentropy; or give num"),
    ],
)
def test_targets_of_another_shape_than_the_outputs_are_refused_with_what_to_give(
    loss: str, shape: tuple[int, ...], outputs: int, message: str
) -> None:
    """One example of zeros would be broadcast along the outputs."""

    def model() -> Any:
        import keras

        made = keras.Sequential([keras.Input((4,)), keras.layers.Dense(outputs)])
        made.compile(optimizer="sgd", loss=loss)
        return made

    job = Job(
        name="one", model=model, data=Examples((np.zeros((8, 4), np.float32), np.zeros((8, *shape), np.int64))),
        loss=None, rule=SGD(), schedule=Constant(0.01), num_steps=1, batch_size=8,
    )  # fmt: skip
    with pytest.raises(ValueError, match=message):
        build(job)


def test_held_out_examples_that_do_not_fit_the_model_are_named() -> None:
    def model() -> Any:
        import keras

        made = keras.Sequential([keras.layers.Dense(3)])
        made.build((None, 4))
        made.compile(optimizer="sgd", loss="mse")
        return made

    train, heldout = ((np.zeros((8, width), np.float32), np.zeros((8, 3), np.float32)) for width in (4, 3))
    job = Job(
        name="one", model=model, data=Examples(train, heldout), loss=None, rule=SGD(), schedule=Constant(0.01),
        num_steps=1, batch_size=8,
    )  # fmt: skip
    with pytest.raises(ValueError) as refusal:
        preflight.check(job, evaluator=True)
    assert "with the held-out examples, `validation_data` of `fit`" in mistakes.describe(refusal.value)


def test_the_limit_is_of_what_travels() -> None:
    rows = MAX_FACTORS_BYTES // (4 * (2048 + 18291))
    layout = lay_out(_VARIABLES, 1)
    assert unsendable(layout, _rows(rows), 4) == set()
    assert unsendable(layout, _rows(rows + 1), 4) == {"head/kernel"}
