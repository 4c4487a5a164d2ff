"""Gradient clipping in a traced step; `Clip` says what is limited. TensorFlow is allowed here."""

from __future__ import annotations

from collections.abc import Sequence

import tensorflow as tf

from downpour.worker.step.clip import Clip


def norms_of(gradients: Sequence[tf.Tensor]) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns the norm of all gradients together, as `tf.linalg.global_norm` computes it, and of each."""
    halves = tf.stack([tf.nn.l2_loss(gradient) for gradient in gradients])
    return tf.sqrt(tf.reduce_sum(halves) * 2.0), tf.sqrt(halves * 2.0)


def clipped(gradients: Sequence[tf.Tensor], clip: Clip | None, norm: tf.Tensor) -> list[tf.Tensor]:
    """Returns dense gradients within the limits of `clip`; `norm` is the global norm of all gradients."""
    if clip is None:
        return list(gradients)
    if clip.by_value is not None:
        return [tf.clip_by_value(g, -clip.by_value, clip.by_value) for g in gradients]
    if clip.by_norm is not None:
        return [tf.clip_by_norm(g, clip.by_norm) for g in gradients]
    limited: list[tf.Tensor] = tf.clip_by_global_norm(gradients, clip.by_global_norm, use_norm=norm)[0]
    return limited


def clipped_factor(d: tf.Tensor, own_norm: tf.Tensor, clip: Clip | None, norm: tf.Tensor) -> tf.Tensor:
    """Clips the second factor d of a gradient x^T d of norm `own_norm`, as `clipped` does dense gradients."""
    if clip is None:
        return d
    limit, length = (clip.by_norm, own_norm) if clip.by_norm is not None else (clip.by_global_norm, norm)
    return d * (limit / tf.maximum(length, limit))
