"""Losses over multi-hot labels. TensorFlow is imported when a loss is called, so that naming a loss does not need it.

Shapes: `B` images in a batch, `C` classes. Each loss may be called inside a `tf.function`.
"""

from __future__ import annotations

from typing import Any


def per_label_logistic(labels: Any, logits: Any) -> Any:
    """One logistic regression per label: summed over labels, averaged over images.

    loss = 1/B sum_b sum_c [max(x, 0) - x z + log(1 + exp(-|x|))] with x = logits, z = labels: the stable form of
    -z log sigmoid(x) - (1 - z) log(1 - sigmoid(x)), finite for any finite logit. Sun et al. 2017, section 4.1.

    Args:
        labels: [B, C] float32, 1 where the label holds, 0 elsewhere.
        logits: [B, C] float32.

    Returns:
        Scalar float32 tensor, nats per image.
    """
    import tensorflow as tf

    each = tf.nn.sigmoid_cross_entropy_with_logits(labels=labels, logits=logits)
    return tf.reduce_mean(tf.reduce_sum(each, axis=1))


def softmax_cross_entropy(labels: Any, logits: Any) -> Any:
    """Cross entropy against the labels as a distribution, averaged over images.

    A row with n labels is a target of 1/n for each; a one-hot row is the usual single-label case; a row without
    labels adds nothing.

    Args:
        labels: [B, C] float32, one-hot or multi-hot, not negative.
        logits: [B, C] float32.

    Returns:
        Scalar float32 tensor, nats per image.
    """
    import tensorflow as tf

    targets = tf.math.divide_no_nan(labels, tf.reduce_sum(labels, axis=1, keepdims=True))
    return tf.reduce_mean(-tf.reduce_sum(targets * tf.nn.log_softmax(logits), axis=1))
