"""Clipping in the compiled step against TensorFlow's functions on the whole gradient, which lies on three shards."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from downpour.model.vision.losses import per_label_logistic
from downpour.proto import codec
from downpour.proto.numerics import convert
from downpour.ps.layout import Slicing, lay_out
from downpour.worker.exchange.exchange import Parameters
from downpour.worker.step.clip import Clip
from downpour.worker.step.step import StepResult, TrainingStep
from downpour.worker.step.variables import initial_values, variables_of

LABELS = 6


def network() -> keras.Model:
    keras.utils.set_random_seed(1)
    layers = keras.layers
    return keras.Sequential([keras.Input((5,)), layers.Dense(7, name="first"), layers.Dense(LABELS, name="head")])


LAYOUT = lay_out(variables_of(network()), 3, [Slicing("*head/*", 4)])


def run(clip: Clip | None, wire: Any = codec.FLOAT32, scale: float = 1.0) -> StepResult:
    model = network()
    vectors = [vector * np.float32(scale) for vector in LAYOUT.scatter(initial_values(model))]
    if wire == codec.BFLOAT16:
        narrow = [np.empty(vector.size, np.uint16) for vector in vectors]
        for vector, out in zip(vectors, narrow, strict=True):
            convert.narrow(vector, out)
        vectors = narrow
    empty = [np.empty(0, np.float32)] * 3
    step = TrainingStep(model, per_label_logistic, LAYOUT, wire, clip)
    rng = np.random.default_rng(0)
    images = rng.normal(size=(4, 5)).astype(np.float32) * 3
    return step(Parameters(vectors, empty, [0, 0, 0], empty), images, np.ones((4, LABELS), np.float32))


def by_variable(result: StepResult) -> list[np.ndarray]:
    return LAYOUT.gather(result.gradients.trained)


@pytest.mark.parametrize(
    ("clip", "reference"),
    [
        (Clip(by_value=0.01), lambda gradients: [tf.clip_by_value(g, -0.01, 0.01) for g in gradients]),
        (Clip(by_norm=0.05), lambda gradients: [tf.clip_by_norm(g, 0.05) for g in gradients]),
        (Clip(by_global_norm=0.05), lambda gradients: tf.clip_by_global_norm(gradients, 0.05)[0]),
        (Clip(by_global_norm=1e6), lambda gradients: gradients),
    ],
    ids=["value", "norm", "global_norm", "nothing to clip"],
)
def test_equals_tensorflow_on_the_whole_gradient(clip: Clip, reference: Callable[[Any], Any]) -> None:
    plain = run(None)
    result = run(clip)
    for mine, theirs in zip(by_variable(result), reference(by_variable(plain)), strict=True):
        np.testing.assert_allclose(mine, np.asarray(theirs), rtol=1e-6)
    assert result.gradient_norm == plain.gradient_norm, "reported before clipping"


def test_the_global_norm_is_over_all_shards() -> None:
    gradients = np.concatenate(run(Clip(by_global_norm=0.05)).gradients.trained)
    assert np.linalg.norm(gradients) == pytest.approx(0.05, rel=1e-6)


def test_it_is_done_in_float32_before_the_cast() -> None:
    """Clipped after the cast, elements would not be what bfloat16 rounds the float32 result to."""
    narrow = run(Clip(by_value=0.0123), codec.BFLOAT16)
    bits = np.concatenate(narrow.gradients.trained)
    limit = tf.cast(tf.constant(0.0123), tf.bfloat16).numpy()
    assert float(np.abs(bits.view(limit.dtype).astype(np.float32)).max()) == float(limit)


@pytest.mark.parametrize("clip", [Clip(by_value=0.1), Clip(by_norm=0.1), Clip(by_global_norm=0.1)], ids=str)
def test_a_gradient_that_is_not_finite_is_seen_all_the_same(clip: Clip) -> None:
    assert not run(clip, scale=1e30).is_finite


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Clip(), "clip: nothing given; give exactly one of by_value, by_norm, by_global_norm"),
        (lambda: Clip(by_value=1.0, by_norm=1.0), "clip: by_value and by_norm given"),
        (lambda: Clip(by_norm=0.0), "clip: by_norm is 0.0; give a number above 0"),
    ],
)
def test_refusals(make: Callable[[], Clip], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
