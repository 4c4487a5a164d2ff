"""Models whose large variables are in memory of their own have the values that they would have had."""

from __future__ import annotations

from pathlib import Path

import keras
import numpy as np
import pytest

from downpour.model import lean, weights
from downpour.ps.layout import Slicing, lay_out
from downpour.worker.step.variables import initial_values, variables_of
from tests.ps.checkpoint.saving import save

WIDE = 70_000


def network() -> keras.Model:
    keras.utils.set_random_seed(0)
    layers = [keras.Input((2,)), keras.layers.Dense(3), keras.layers.BatchNormalization()]
    return keras.Sequential([*layers, keras.layers.Dense(WIDE, name="head")], name="wide")


def values(model: keras.Model) -> list[np.ndarray]:
    return [variable.numpy() for variable in model.variables]


def test_large_variables_are_drawn_later_as_they_would_have_been() -> None:
    plain = values(network())
    with lean.undrawn() as undrawn:
        model = network()
    assert [variable.path.rpartition("head/")[2] for variable, _ in undrawn] == ["kernel"]
    assert not undrawn[0][0].numpy().any() and model.layers[0].kernel.numpy().any()
    lean.draw(undrawn, assigned={undrawn[0][0].path})
    assert not undrawn[0][0].numpy().any()
    lean.draw(undrawn, assigned=())
    for mine, theirs in zip(values(model), plain, strict=True):
        np.testing.assert_array_equal(mine, theirs)
    for mine, theirs in zip(values(network()), plain, strict=True):  # Keras draws again as ever
        np.testing.assert_array_equal(mine, theirs)


@pytest.mark.parametrize("average", [False, True])
def test_a_checkpoint_is_loaded_as_it_would_be_assigned(tmp_path: Path, average: bool) -> None:
    source, plain, one_by_one = network(), network(), network()
    rng = np.random.default_rng(1)
    layout = lay_out(variables_of(source), 3, [Slicing("*head/kernel", num_slices=5)])
    drawn = [rng.normal(size=value.shape).astype(np.float32) for value in initial_values(source, layout)]
    vectors = layout.scatter(drawn)
    saved = save(tmp_path, layout, [{"parameters": v, "slot.average": -v} for v in vectors])
    for _ in range(2):  # the second time over memory that is in use
        weights.assign(plain, weights.named(saved, average))
        weights.load(one_by_one, saved, average)
        for mine, theirs in zip(values(one_by_one), values(plain), strict=True):
            np.testing.assert_array_equal(mine, theirs)
    x = np.ones((4, 2), np.float32)
    np.testing.assert_array_equal(one_by_one(x).numpy(), plain(x).numpy())
