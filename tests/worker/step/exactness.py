"""Trains a small model twice: as one worker and one shard with SGD do, and by Keras' own `train_on_batch`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from downpour.ps.layout import Layout, lay_out
from downpour.worker.exchange.exchange import Parameters
from downpour.worker.step.examine import examine, kinds_of
from downpour.worker.step.step import StepResult, TrainingStep
from downpour.worker.step.variables import factored_names, initial_values, variables_of

Loss = Callable[[Any, Any], Any]
Batch = tuple[np.ndarray, np.ndarray]


def squares(labels: Any, outputs: Any) -> Any:
    """Mean squared error."""
    return tf.reduce_mean(tf.square(outputs - labels))


@dataclass(frozen=True)
class Trained:
    """What a training gives: the loss of every step, and the values of the layout's variables by their order."""

    losses: list[float]
    values: list[np.ndarray]


def layout_of(model: keras.Model, loss: Loss, batch: Batch, **patterns: Sequence[str]) -> Layout:
    """As `launch.build` makes it, on one shard."""
    images, labels = batch
    examined = examine(model, loss, (images, labels))
    kinds = kinds_of(model, examined, **patterns)
    factored = factored_names(model, len(images), examined)
    return lay_out(variables_of(model, factored=factored, kinds=kinds, frozen=patterns.get("frozen", ())), 1)


def parameters_of(layout: Layout, vector: np.ndarray) -> Parameters:
    """What a pull of a shard's vector gives; the step's results do not change with it."""
    trained, pushed = layout.num_trained(0), layout.num_pushed(0)
    vector = vector.copy()
    return Parameters([vector[:trained]], [vector[trained:pushed]], [0], [vector[pushed:]])


def gradient_of(layout: Layout, result: StepResult) -> np.ndarray:
    """The gradient of the trained part [num_trained], with factors multiplied."""
    parts = []
    assert result.gradients.factors is not None
    for group, (x, d) in zip(layout.factored(0), result.gradients.factors[0], strict=True):
        assert x.shape[1:] + d.shape[1:] == (group.num_inputs, group.num_outputs)
        parts.append((x.T @ d).ravel())
    return np.concatenate([*parts, result.gradients.trained[0]])


def downpour(model: keras.Model, loss: Loss, batches: Sequence[Batch], rate: float, layout: Layout) -> Trained:
    """One worker in float32, and one shard with SGD."""
    [vector], step, losses = layout.scatter(initial_values(model, layout)), TrainingStep(model, loss, layout), []
    trained, pushed = layout.num_trained(0), layout.num_pushed(0)
    for batch in batches:
        result = step(parameters_of(layout, vector), *batch)
        assert result.is_finite
        losses.append(result.loss)
        vector[:trained] -= np.float32(rate) * gradient_of(layout, result)
        vector[trained:pushed] += result.gradients.statistics[0]
    return Trained(losses, layout.gather([vector]))


def plain_keras(model: keras.Model, loss: Loss, batches: Sequence[Batch], rate: float, layout: Layout) -> Trained:
    """`train_on_batch` with Keras' SGD."""
    model.compile(optimizer=keras.optimizers.SGD(rate), loss=loss, jit_compile=False)
    losses = [float(model.train_on_batch(*batch)) for batch in batches]
    return Trained(losses, initial_values(model, layout))
