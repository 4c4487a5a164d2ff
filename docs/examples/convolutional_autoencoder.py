"""Denoising pictures, after "Convolutional autoencoder for image denoising" of keras.io.

Strided convolutions and transposed ones restore digits from noisy ones. Data: scikit-learn's 1,797 digits of 8 x 8
pixels; the noise is drawn once, from a fixed seed.

    downpour local --recipe=docs/examples/convolutional_autoencoder.py
"""

from typing import Any

import numpy as np

from downpour.launch.job import Cluster, Exchange, Job
from downpour.model.data import Examples
from downpour.ps.rules import KerasAdam
from downpour.ps.schedules import KerasCosine

NUM_TRAIN, BATCH, EPOCHS = 1437, 64, 200
STEPS = EPOCHS * NUM_TRAIN // BATCH


def _digits() -> tuple[np.ndarray, np.ndarray]:
    """Noisy digits and clean ones, [n, 8, 8, 1] in [0, 1]."""
    from sklearn.datasets import load_digits

    clean = (load_digits().images[..., None] / 16).astype(np.float32)
    noise = np.random.default_rng(0).normal(0, 0.4, clean.shape).astype(np.float32)
    return np.clip(clean + noise, 0, 1), clean


def training() -> tuple[np.ndarray, ...]:
    """Four fifths of the digits."""
    return tuple(part[:NUM_TRAIN] for part in _digits())


def heldout() -> tuple[np.ndarray, ...]:
    """The last fifth, by other writers."""
    return tuple(part[NUM_TRAIN:] for part in _digits())


def model() -> Any:
    """The compiled model."""
    import keras
    from keras import layers

    inputs = keras.Input((8, 8, 1))
    x = layers.Conv2D(32, 3, activation="relu", padding="same")(inputs)
    x = layers.MaxPooling2D(2, padding="same")(x)
    x = layers.Conv2D(32, 3, activation="relu", padding="same")(x)
    x = layers.MaxPooling2D(2, padding="same")(x)
    x = layers.Conv2DTranspose(32, 3, strides=2, activation="relu", padding="same")(x)
    x = layers.Conv2DTranspose(32, 3, strides=2, activation="relu", padding="same")(x)
    outputs = layers.Conv2D(1, 3, activation="sigmoid", padding="same")(x)
    built = keras.Model(inputs, outputs, name="autoencoder")
    optimizer = keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(1e-3, STEPS))
    built.compile(optimizer, "binary_crossentropy")
    return built


def job() -> Job:
    """The job; see the module."""
    return Job(
        name="convolutional_autoencoder",
        model=model,
        data=Examples(training, heldout),
        loss=None,  # the compiled model's
        rule=KerasAdam(),
        schedule=KerasCosine(1e-3, STEPS),
        num_steps=STEPS,
        batch_size=BATCH,
        cluster=Cluster(num_ps=3, num_workers=2, threads_per_worker=1),
        exchange=Exchange(codec="float32", overlap=False),
        checkpoint_every_steps=10 * NUM_TRAIN // BATCH,
    )
