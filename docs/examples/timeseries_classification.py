"""Sensor readings, after "Timeseries classification from scratch" of keras.io.

Convolutions with batch norm tell three shapes in noise apart. Data: generated, Saito's cylinders, bells and funnels
(1994), with twice his noise.

    downpour local --recipe=docs/examples/timeseries_classification.py
"""

from typing import Any

import numpy as np

from downpour.launch.job import Cluster, Exchange, Job
from downpour.model.data import Examples
from downpour.ps.rules import KerasAdam
from downpour.ps.schedules import KerasCosine

LENGTH, NOISE = 128, 2.0
NUM_TRAIN, BATCH, EPOCHS = 3000, 32, 16
STEPS = EPOCHS * NUM_TRAIN // BATCH


def _shapes(number: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Series [n, LENGTH, 1], and 0 for cylinders, 1 for bells (rising), 2 for funnels (falling) [n]."""
    rng = np.random.default_rng(seed)
    kinds = rng.integers(0, 3, number)
    begin, length = rng.integers(16, 32, (number, 1)), rng.integers(32, 96, (number, 1))
    along = (np.arange(LENGTH) - begin) / length
    inside = (along >= 0) & (along <= 1)
    shape = np.choose(kinds[:, None], [np.ones_like(along), along, 1 - along])
    height = 6 + rng.standard_normal((number, 1))
    series = height * shape * inside + NOISE * rng.standard_normal(along.shape)
    return series[..., None].astype(np.float32), kinds.astype(np.int32)


def training() -> tuple[np.ndarray, np.ndarray]:
    """The training series."""
    return _shapes(NUM_TRAIN, seed=0)


def heldout() -> tuple[np.ndarray, np.ndarray]:
    """2,000 others."""
    return _shapes(2000, seed=1)


def model() -> Any:
    """The compiled model."""
    import keras
    from keras import layers

    x = inputs = keras.Input((LENGTH, 1))
    for _ in range(3):
        x = layers.Conv1D(32, 3, padding="same")(x)
        x = layers.ReLU()(layers.BatchNormalization(momentum=0.9)(x))
    outputs = layers.Dense(3, activation="softmax")(layers.GlobalAveragePooling1D()(x))
    built = keras.Model(inputs, outputs, name="shapes")
    optimizer = keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(1e-3, STEPS))
    built.compile(optimizer, "sparse_categorical_crossentropy", metrics=["accuracy"])
    return built


def job() -> Job:
    """The job; see the module."""
    return Job(
        name="timeseries_classification",
        model=model,
        data=Examples(training, heldout),
        loss=None,  # the compiled model's
        rule=KerasAdam(),
        schedule=KerasCosine(1e-3, STEPS),
        num_steps=STEPS,
        batch_size=BATCH,
        cluster=Cluster(num_ps=3, num_workers=2, threads_per_worker=1),
        exchange=Exchange(codec="float32", overlap=False),
        checkpoint_every_steps=2 * NUM_TRAIN // BATCH,
    )
