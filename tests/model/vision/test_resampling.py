"""Resized windows beside TensorFlow's resize."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from downpour.model.vision.resampling import resized
from downpour.model.vision.window import Window

SHAPES = [
    (375, 500, 340),
    (500, 375, 299),
    (1, 1, 5),
    (2, 3, 36),
    (618, 618, 36),
    (900, 3, 32),
    (40, 700, 64),
    (7, 7, 7),
]


def picture(height: int, width: int) -> np.ndarray:
    """Smooth colours with noise, read-only as decoded images are."""
    rows, columns = np.mgrid[:height, :width] / max(height, width)
    smooth = np.stack([rows, columns, 1 - rows], axis=-1) * 200
    noisy = (smooth + np.random.default_rng(height).uniform(0, 55, smooth.shape)).astype(np.uint8)
    noisy.setflags(write=False)
    return noisy


@pytest.mark.parametrize(("height", "width", "resize"), SHAPES)
def test_it_is_the_resize_of_tensorflow(height: int, width: int, resize: int) -> None:
    given = picture(height, width)
    theirs = tf.round(tf.image.resize(given, [resize, resize], antialias=True)).numpy().astype(int)
    difference = np.abs(resized(given, resize).astype(int) - theirs)
    assert difference.max() <= 1
    assert (difference > 0).mean() < 1e-3


@pytest.mark.parametrize(("height", "width", "resize"), SHAPES)
def test_a_window_has_the_bytes_of_the_whole(height: int, width: int, resize: int) -> None:
    given, side = picture(height, width), resize - resize // 8
    whole = resized(given, resize)
    for top, left in ((0, 0), (resize - side, 0), (resize // 8, resize - side)):
        for is_mirrored in (False, True):
            window = Window(top, left, side, is_mirrored)
            assert np.array_equal(resized(given, resize, window), window.of(whole))
    plain = whole[top : top + side, left : left + side]
    assert np.array_equal(window.of(whole)[:, ::-1], plain)
