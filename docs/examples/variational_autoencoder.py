"""A generative model, after "Variational AutoEncoder" of keras.io.

Keras' example overrides `train_step`, which workers would not call; here the layer that draws the code adds the
Kullback-Leibler term by `add_loss`, and `compile` gets the loss of the reconstruction. Data: scikit-learn's 1,797
digits of 8 x 8 pixels.

    downpour local --recipe=docs/examples/variational_autoencoder.py
"""

from typing import Any

import numpy as np

from downpour.launch.job import Cluster, Exchange, Job
from downpour.model.data import Examples
from downpour.ps.rules import KerasAdam
from downpour.ps.schedules import KerasCosine

CODE = 2
NUM_TRAIN, BATCH, EPOCHS = 1437, 64, 160
STEPS = EPOCHS * NUM_TRAIN // BATCH


def _digits(part: slice) -> tuple[np.ndarray, np.ndarray]:
    """Digits [n, 8, 8, 1] in [0, 1], twice: they are input and target."""
    from sklearn.datasets import load_digits

    digits = (load_digits().images[part, ..., None] / 16).astype(np.float32)
    return digits, digits


def training() -> tuple[np.ndarray, np.ndarray]:
    """Four fifths of the digits."""
    return _digits(slice(NUM_TRAIN))


def heldout() -> tuple[np.ndarray, np.ndarray]:
    """The last fifth, by other writers."""
    return _digits(slice(NUM_TRAIN, None))


def reconstruction(images: Any, restored: Any) -> Any:
    """Sum over the pixels of the cross-entropy [B]."""
    import keras

    return keras.ops.sum(keras.losses.binary_crossentropy(images, restored), axis=(1, 2))


def model() -> Any:
    """The compiled model."""
    import keras
    from keras import layers

    class Sampling(layers.Layer):
        """Draws the code from its distribution, and adds that distribution's divergence from the normal one."""

        def __init__(self) -> None:
            super().__init__(name="sampling")
            self.seeds = keras.random.SeedGenerator(1)

        def call(self, inputs: Any) -> Any:
            mean, log_variance = inputs
            each = 1 + log_variance - keras.ops.square(mean) - keras.ops.exp(log_variance)
            self.add_loss(-0.5 * keras.ops.mean(keras.ops.sum(each, axis=1)))
            noise = keras.random.normal(keras.ops.shape(mean), seed=self.seeds)
            return mean + keras.ops.exp(log_variance / 2) * noise

    inputs = keras.Input((8, 8, 1))
    x = layers.Conv2D(32, 3, activation="relu", strides=2, padding="same")(inputs)
    x = layers.Conv2D(64, 3, activation="relu", strides=2, padding="same")(x)
    x = layers.Dense(16, activation="relu")(layers.Flatten()(x))
    code = Sampling()([layers.Dense(CODE, name="mean")(x), layers.Dense(CODE, name="log_variance")(x)])
    x = layers.Reshape((2, 2, 64))(layers.Dense(2 * 2 * 64, activation="relu")(code))
    x = layers.Conv2DTranspose(64, 3, activation="relu", strides=2, padding="same")(x)
    x = layers.Conv2DTranspose(32, 3, activation="relu", strides=2, padding="same")(x)
    outputs = layers.Conv2DTranspose(1, 3, activation="sigmoid", padding="same")(x)
    built = keras.Model(inputs, outputs, name="variational")
    optimizer = keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(1e-3, STEPS))
    built.compile(optimizer, reconstruction)
    return built


def job() -> Job:
    """The job; see the module."""
    return Job(
        name="variational_autoencoder",
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
