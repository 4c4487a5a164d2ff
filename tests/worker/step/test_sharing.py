"""What shares memory with a tensor, and what must be copied."""

from __future__ import annotations

import gc
import weakref

import numpy as np
import pytest
import tensorflow as tf

from downpour.model.data.batches import new_images
from downpour.worker.step.sharing import array_of, tensor_of


def images_of(value: float) -> np.ndarray:
    images = new_images(2, 3, 3, 3)
    images[:] = value
    return images


def test_images_become_a_tensor_in_place() -> None:
    images = images_of(1)
    tensor = tensor_of(images)
    assert (tensor.shape, tensor.dtype) == ((2, 3, 3, 3), tf.float32)
    assert np.shares_memory(array_of(tensor), images)
    assert float(tf.function(tf.reduce_sum)(tensor)) == images.size


def test_the_memory_lives_as_long_as_the_tensor_and_no_longer() -> None:
    images = images_of(3)
    memory = weakref.ref(images.base if images.base is not None else images)
    tensor = tensor_of(images)
    del images
    gc.collect()
    assert memory() is not None and float(tf.reduce_sum(tensor)) == 3 * 54
    del tensor
    gc.collect()
    assert memory() is None


@pytest.mark.parametrize(
    "make",
    [
        lambda: images_of(2)[:, 1:],
        lambda: images_of(2)[..., ::-1],
        lambda: images_of(2)[1:],
        lambda: images_of(2).astype(np.float64),
        lambda: images_of(2)[:0],
        lambda: np.broadcast_to(images_of(2)[:1], (2, 3, 3, 3)),
        lambda: [[2.0, 2.0]],
    ],
)
def test_anything_else_is_copied_and_equal(make: object) -> None:
    given = make()  # type: ignore[operator]
    tensor = tensor_of(given)
    np.testing.assert_array_equal(tensor.numpy(), given)
    assert not np.shares_memory(array_of(tensor), given)
    assert tf.reduce_sum(tensor).shape == ()


def test_a_tensor_stays_one() -> None:
    tensor = tf.ones(3)
    assert tensor_of(tensor) is tensor


def test_a_result_is_an_array_of_its_own_memory() -> None:
    tensor = tf.cast(tf.range(5), tf.bfloat16)
    bits = array_of(tensor).view(np.uint16)
    assert np.shares_memory(bits, array_of(tensor))
    del tensor
    np.testing.assert_array_equal((bits.astype(np.uint32) << 16).view(np.float32), np.arange(5))
