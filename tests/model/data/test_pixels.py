"""Bytes that stand for floats: every reader gets the same floats, made where it computes."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from downpour.model.data import pixels as pixel_module
from downpour.model.data.nests import num_examples
from downpour.model.data.pixels import Pixels
from downpour.worker.step.sharing import specs_of, tensors_of

ALL = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1).repeat(3, axis=-1)


def expected() -> np.ndarray:
    """What batches of floats held before: scaled, then shifted, each rounded to float32."""
    floats = ALL.astype(np.float32)
    floats *= np.float32(1 / 127.5)
    floats -= 1
    return floats


@pytest.mark.parametrize("on_device", [False, True])
def test_every_reader_gets_the_same_bits(on_device: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """On an accelerator the same function computes; here it runs on the processor."""
    monkeypatch.setattr(pixel_module, "has_accelerator", lambda: on_device)
    pixels = Pixels(ALL)
    (tensor,) = tensors_of((pixels,))
    readings = np.asarray(pixels), np.stack(list(pixels)), tensor.numpy(), tf.convert_to_tensor(pixels).numpy()
    for found in readings:
        assert found.dtype == np.float32
        assert np.array_equal(found, expected())
    assert expected().min() == -1 and expected().max() == 1


def test_it_describes_the_floats() -> None:
    pixels = Pixels(ALL.repeat(5, axis=0))
    assert pixels.shape == np.shape(pixels) == (5, 16, 16, 3) and len(pixels) == num_examples((pixels,)) == 5
    assert specs_of(pixels) == tf.TensorSpec((5, 16, 16, 3), tf.float32)
    assert np.asarray(pixels, np.float64).dtype == tf.convert_to_tensor(pixels, tf.float64).numpy().dtype == np.float64


def test_bytes_of_a_user_stay_what_they_are() -> None:
    (tensor,) = tensors_of((ALL,))
    assert tensor.dtype == tf.uint8 and np.array_equal(tensor.numpy(), ALL)


def test_what_are_no_images_of_bytes_is_refused() -> None:
    for wrong in (expected(), ALL[0]):
        with pytest.raises(ValueError, match=r"pixels are .*; give uint8 \[B, S, S, 3\]"):
            Pixels(wrong)
    with pytest.raises(ValueError, match="floats of them are a copy"):
        np.array(Pixels(ALL), copy=False)
