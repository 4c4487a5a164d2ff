from __future__ import annotations

import numpy as np
import pytest

from downpour.model.vision.losses import per_label_logistic, softmax_cross_entropy


def test_per_label_logistic_sums_over_labels_and_averages_over_images():
    labels = np.array([[1, 0, 1], [0, 0, 1]], np.float32)
    logits = np.array([[2, -1, 0.5], [0, 3, -2]], np.float32)
    chances = 1 / (1 + np.exp(-logits.astype(float)))
    expected = -np.sum(labels * np.log(chances) + (1 - labels) * np.log(1 - chances)) / 2
    assert float(per_label_logistic(labels, logits)) == pytest.approx(expected, rel=1e-6)


def test_per_label_logistic_and_its_gradient_are_finite_far_out():
    import tensorflow as tf

    logits = tf.constant([[1e4, -1e4, 1e4, -1e4]])
    labels = tf.constant([[1.0, 0.0, 0.0, 1.0]])
    with tf.GradientTape() as tape:
        tape.watch(logits)
        loss = per_label_logistic(labels, logits)
    assert float(loss) == pytest.approx(2e4)
    assert tape.gradient(loss, logits).numpy().tolist() == [[0, 0, 1, -1]]


def test_softmax_cross_entropy_spreads_its_target_over_the_labels():
    logits = np.array([[1, 2, 3], [0, 0, 5]], np.float32)
    logs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    one_hot = np.array([[0, 0, 1], [1, 0, 0]], np.float32)
    multi_hot = np.array([[1, 0, 1], [0, 0, 0]], np.float32)
    assert float(softmax_cross_entropy(one_hot, logits)) == pytest.approx(-(logs[0, 2] + logs[1, 0]) / 2, rel=1e-6)
    assert float(softmax_cross_entropy(multi_hot, logits)) == pytest.approx(-(logs[0, 0] + logs[0, 2]) / 4, rel=1e-6)
