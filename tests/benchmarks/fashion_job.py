"""A recipe for learning claims: Fashion-MNIST and a small convolutional network with batch norm, in plain Keras.

RMSprop with momentum 0.9, as the paper; its rate falls to zero. Data: Debian's dataset-fashion-mnist, 60,000 pictures
of clothes in ten classes.
"""

from typing import Any

import numpy as np

from downpour.launch.job import Cluster, Exchange, Job
from downpour.model.data import Examples
from downpour.ps.rules import KerasRMSProp
from downpour.ps.schedules import KerasCosine

NUM_TRAIN, BATCH, EPOCHS = 60_000, 32, 10
STEPS = EPOCHS * NUM_TRAIN // BATCH
RATE = 1e-3


def _part(name: str) -> tuple[np.ndarray, np.ndarray]:
    """Pictures [n, 28, 28, 1] float32 in [-1, 1], and numbers of their classes [n]."""
    from tests.benchmarks.fashion_mnist import FashionMnist

    data = FashionMnist.load()
    images, labels = getattr(data, f"{name}_images"), getattr(data, f"{name}_labels")
    return images, labels.argmax(1).astype(np.int32)


def training() -> tuple[np.ndarray, np.ndarray]:
    """60,000 pictures."""
    return _part("train")


def heldout() -> tuple[np.ndarray, np.ndarray]:
    """10,000 others."""
    return _part("test")


def network(num_outputs: int, name: str) -> Any:
    """Pictures to logits: 19,400 parameters for ten of them, moving averages included."""
    import keras
    from keras import layers

    inputs = keras.Input((28, 28, 1))
    x = inputs
    for filters in (16, 32, 32):
        x = layers.Conv2D(filters, 3, strides=2, padding="same", use_bias=False)(x)
        x = layers.ReLU()(layers.BatchNormalization(momentum=0.9)(x))
    return keras.Model(inputs, layers.Dense(num_outputs)(layers.Flatten()(x)), name=name)


def model() -> Any:
    """The compiled model."""
    import keras

    built = network(10, "fashion")
    schedule = keras.optimizers.schedules.CosineDecay(RATE, STEPS)
    optimizer = keras.optimizers.RMSprop(schedule, momentum=0.9)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    built.compile(optimizer, loss, metrics=["accuracy"])
    return built


def job() -> Job:
    """The job; see the module."""
    return Job(
        name="fashion",
        model=model,
        data=Examples(training, heldout),
        loss=None,  # the compiled model's
        rule=KerasRMSProp(momentum=0.9),
        schedule=KerasCosine(RATE, STEPS),
        num_steps=STEPS,
        batch_size=BATCH,
        cluster=Cluster(num_ps=2, num_workers=2, threads_per_worker=1),
        exchange=Exchange(codec="float32"),
        checkpoint_every_steps=STEPS,
    )
