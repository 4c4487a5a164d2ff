"""The evaluator: scores every checkpoint on the held-out images and reports the scores to the chief.

Threads: one. TensorFlow is allowed here.
"""

from __future__ import annotations

import time
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from absl import logging

from downpour.model import keras_private
from downpour.model.data import Dataset
from downpour.model.vision import metrics
from downpour.model.vision.records import RecordCounts
from downpour.proto.chief_pb2 import Score
from downpour.ps.checkpoint import manifest as checkpoint
from downpour.ps.checkpoint import restore
from downpour.ps.checkpoint.manifest import Checkpoint
from downpour.ps.checkpoint.shard_file import Damaged
from downpour.ps.layout import Layout
from downpour.worker.exchange.clients import ChiefClient
from downpour.worker.step.forward import infer
from downpour.worker.step.variables import variables_in

_ASK_EVERY_S = 0.5


class Evaluator:
    """Scores parameters of one model on one set of held-out images.

    Args:
        model: A built model; its variables are overwritten.
        mine: The layout of its variables.
        data: Source of the held-out images.
        batch_size: Images scored in one call.
        average: Whether the average of the parameters is scored in their place.

    Attributes:
        has_scored: Whether it has scored a checkpoint.
    """

    def __init__(self, model: keras.Model, mine: Layout, data: Dataset, batch_size: int, average: bool = False) -> None:
        self.has_scored = False
        self._average = average
        self._model = model
        self._layout = mine
        self._data = data
        self._batch_size = batch_size
        self._predict = tf.function(lambda images: infer(model, images), reduce_retracing=True, autograph=False)

    def score(self, directory: str) -> tuple[dict[str, float], RecordCounts]:
        """Scores one checkpoint.

        Returns:
            `map_at_100` (classes weighted by popularity), `map_at_100_unweighted`, and what random scores would
            reach, `chance` (unweighted) and `chance_weighted`; and how many records were read and skipped.

        Raises:
            LayoutMismatch: The checkpoint is of another model; the number of shards may differ.
            Damaged: The checkpoint is corrupt.
            ValueError: The checkpoint or the data cannot be read, or there is no average.
        """
        saved = checkpoint.load(directory)
        restore.check(saved, self._layout.variables)
        fill(self._model, self._layout, saved, self._average)
        for layer in keras_private.layers_of(self._model):
            if isinstance(layer, keras.layers.RNN) and layer.stateful:  # its states stem from the last batch scored
                layer.reset_state()
        scores, labels, counts = self._predict_all()
        metrics.check_labels(labels)
        mean = metrics.mean_average_precision_at(scores, labels)
        chance = metrics.chance(labels)
        self.has_scored = True
        return {
            "map_at_100": mean.weighted,
            "map_at_100_unweighted": mean.unweighted,
            "chance": chance.unweighted,
            "chance_weighted": chance.weighted,
        }, counts

    def _predict_all(self) -> tuple[np.ndarray, np.ndarray, RecordCounts]:
        scores: list[Any] = []
        labels: list[Any] = []
        with self._data.heldout(batch_size=self._batch_size) as batches:
            for images, batch_labels in batches:
                scores.append(self._predict(images).numpy())
                labels.append(np.asarray(batch_labels))
            if not scores:
                raise ValueError(
                    f"data source {type(self._data).__name__} gives no held-out batch to score; give held-out images, "
                    "or start with --noevaluator to train without scores"
                )
            return np.concatenate(scores), np.concatenate(labels), batches.counts


def fill(model: keras.Model, mine: Layout, saved: Checkpoint, average: bool = False) -> None:
    """Assigns the parameters of a checkpoint, or their average, to a model's variables by name.

    Args:
        model: Its variables are overwritten.
        mine: The layout of its variables.
        saved: A checkpoint of variables of these names and shapes, in any order and on any number of shards.
        average: Whether the average is read in place of the parameters.

    Raises:
        ValueError: The checkpoint cannot be read, or has no average.
    """
    values = saved.layout.gather(saved.parameters(average))
    found = {variable.name: value for variable, value in zip(saved.layout.variables, values, strict=True)}
    for variable, known in zip(variables_in(model, mine), mine.variables, strict=True):
        value = found[known.name]
        # The sum of stale differences can make a variance negative for a moment.
        is_variance = variable.path.endswith("/moving_variance")
        variable.assign(np.maximum(value, 0) if is_variance else value)


def run(evaluator: Evaluator, chief: ChiefClient) -> None:
    """Scores each new checkpoint and reports it to the chief, until the last one."""
    step = -1
    while True:
        found = chief.next_checkpoint(step)
        if not found.directory:
            if found.stop:
                return
            time.sleep(_ASK_EVERY_S)
            continue
        step, directory = found.step, found.directory
        try:
            metrics_, counts = evaluator.score(directory)
        except ValueError as error:
            whole = _is_whole(directory)
            if found.last or (whole and not isinstance(error, Damaged)):
                raise
            if whole:
                logging.warning("the checkpoint of step %d is not scored: %s", step, error)
            else:
                logging.warning("the chief removed the checkpoint of step %d before it was read", step)
            continue
        logging.info("step %d: mAP@100 %.3f", step, metrics_["map_at_100"])
        chief.report_score(
            Score(
                step=step,
                metrics=metrics_,
                records_read=counts.read,
                records_skipped=counts.skipped,
                skipped_examples=counts.examples,
            )
        )
        if found.last:
            return


def _is_whole(directory: str) -> bool:
    """Whether a checkpoint still exists with all its files; the chief keeps only the newest few."""
    try:
        return checkpoint.load(directory).is_whole()
    except ValueError:
        return False
