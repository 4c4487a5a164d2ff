"""Sequence to sequence, after "Sequence to sequence learning for performing number addition" of keras.io.

An LSTM reads "12+145 " letter by letter, another writes the sum. Data: generated, all 20,100
unordered pairs of numbers below 200, a tenth of which is held out.

    downpour local --recipe=docs/examples/addition_rnn.py
"""

from typing import Any

import numpy as np

from downpour.launch.job import Cluster, Exchange, Job
from downpour.model.data import Examples
from downpour.ps.rules import KerasAdam
from downpour.ps.schedules import KerasCosine

LETTERS = "0123456789+ "
BELOW, QUESTION, ANSWER = 200, 7, 3
NUM_TRAIN, BATCH, EPOCHS = 18_000, 128, 20
STEPS = EPOCHS * NUM_TRAIN // BATCH


def _one_hot(texts: list[str]) -> np.ndarray:
    """Texts of one length as [n, length, letters] float32."""
    return np.eye(len(LETTERS), dtype=np.float32)[[[LETTERS.index(letter) for letter in text] for text in texts]]


def _sums(part: slice) -> tuple[np.ndarray, np.ndarray]:
    """Questions, reversed as in Keras' example, and answers, one-hot."""
    pairs = [(a, b) for a in range(BELOW) for b in range(a, BELOW)]
    chosen = [pairs[i] for i in np.random.default_rng(0).permutation(len(pairs))[part]]
    questions = [f"{a}+{b}".ljust(QUESTION)[::-1] for a, b in chosen]
    return _one_hot(questions), _one_hot([str(a + b).ljust(ANSWER) for a, b in chosen])


def training() -> tuple[np.ndarray, np.ndarray]:
    """The first NUM_TRAIN pairs of a random order."""
    return _sums(slice(NUM_TRAIN))


def heldout() -> tuple[np.ndarray, np.ndarray]:
    """The others."""
    return _sums(slice(NUM_TRAIN, None))


def model() -> Any:
    """The compiled model."""
    import keras
    from keras import layers

    inputs = keras.Input((QUESTION, len(LETTERS)))
    x = layers.RepeatVector(ANSWER)(layers.LSTM(64)(inputs))
    x = layers.LSTM(64, return_sequences=True)(x)
    built = keras.Model(inputs, layers.Dense(len(LETTERS), activation="softmax")(x), name="addition")
    optimizer = keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(3e-3, STEPS))
    built.compile(optimizer, "categorical_crossentropy", metrics=["accuracy"])
    return built


def job() -> Job:
    """The job; see the module."""
    return Job(
        name="addition_rnn",
        model=model,
        data=Examples(training, heldout),
        loss=None,  # the compiled model's
        rule=KerasAdam(),
        schedule=KerasCosine(3e-3, STEPS),
        num_steps=STEPS,
        batch_size=BATCH,
        cluster=Cluster(num_ps=3, num_workers=2, threads_per_worker=1),
        exchange=Exchange(codec="float32", overlap=False),
        checkpoint_every_steps=5 * NUM_TRAIN // BATCH,
    )
