"""What benchmarks of learning share: plain Keras on a recipe's job, and the scores of a run."""

from __future__ import annotations

import concurrent.futures
import json
import multiprocessing
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from downpour.launch.job import recipe


def keras_scores(path: str | Path, overrides: Sequence[str]) -> tuple[dict[str, float], float]:
    """Trains a recipe's model in plain Keras; returns the scores and the seconds of training."""
    import keras
    import tensorflow as tf

    job = recipe.load(path, overrides)
    keras.utils.set_random_seed(job.seed)
    model, data = job.model(), arrays(job.data.train)
    weights = job.data.class_weight
    passes, rest = divmod(job.num_steps * job.batch_size, job.data.num_records)
    begin = time.monotonic()
    for part, epochs in ((data, passes), (tf.nest.map_structure(lambda a: a[:rest], data), 1 if rest else 0)):
        model.fit(*part, batch_size=job.batch_size, epochs=epochs, class_weight=weights, verbose=0)
    seconds = time.monotonic() - begin
    scores = model.evaluate(*arrays(job.data.validation), batch_size=job.batch_size, verbose=0, return_dict=True)
    return {name: float(value) for name, value in scores.items()}, seconds


def arrays(source: Any) -> Any:
    """Arrays (x, y) of a recipe's source: those it returns, or its items stacked; texts as tensors."""
    import tensorflow as tf

    given = source()
    if not isinstance(given, tuple):
        given = tuple(np.stack(column) for column in zip(*(given[i] for i in range(len(given))), strict=True))
    return tf.nest.map_structure(lambda array: tf.constant(array) if array.dtype == object else array, given)


def scores_of(folder: Path) -> dict[str, float]:
    """Scores of a run's last checkpoint, by the metric's name without `val_`."""
    rows = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
    last = [row for row in rows if row["kind"] == "score"][-1]
    return {name.removeprefix("val_"): value for name, value in last.items() if isinstance(value, float)}


def in_a_process(function: Any, *arguments: Any) -> Any:
    """Calls a function in a new process, which has no state of earlier trainings."""
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(function, *arguments).result()
