"""What simulations of a job share: its model, built, compiled and scored. Imports TensorFlow when it is made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from functools import cached_property
from typing import Any

import numpy as np

from downpour.launch.job import Job
from downpour.launch.job.build import build, check_data
from downpour.launch.job.step import overlap_of, training_step
from downpour.launch.roles import initial
from downpour.model import keras_private
from downpour.model.weights import ASSIGNED
from downpour.ps.policy.pace import Sync
from downpour.ps.policy.staleness import Compensate

# Fields of a job on which model, layout, step and scores do not depend, or only as `_essentials` says.
_FREE = {
    *("name", "rule", "schedule", "pace", "staleness", "cadence", "average", "evaluate_average", "num_steps"),
    *("cluster", "exchange", "callbacks", "max_train_s"),
    *("checkpoint_every_steps", "checkpoint_every_epoch", "keep_checkpoints", "keep_every_steps"),
}


class Trainable:
    """A job's model, compiled step and evaluator.

    Args:
        job: The job.

    Raises:
        ValueError: The model or the data cannot be used, or the model keeps state between batches.

    Attributes:
        layout: Layout of the model's variables.
        values: One array a variable, the initial values.
        step: The compiled step.
        state: `local` and `scale` of the step before the first batch.
    """

    def __init__(self, job: Job) -> None:
        self._job = job
        check_data(job)
        self._model, self.layout = build(job)
        _refuse_stateful(self._model)
        self.values = initial.values(self._model, self.layout, None, job.exchange.codec)
        self.step = training_step(job, self._model, self.layout)
        self.state = (list(self.step.local), self.step.scale and replace(self.step.scale))

    def fits(self, job: Job) -> bool:
        """Whether another job has the same model, initial values, layout, step, data and scores."""
        return self._essentials(job) == self._essentials(self._job)

    def settled(self, job: Job) -> Job:
        """Returns the job without overlap if its workers leave it out for this model; see `overlap_of`."""
        if overlap_of(job, self._model) is False:
            return replace(job, exchange=replace(job.exchange, overlap=False))
        return job

    def score(self, values: Mapping[str, np.ndarray]) -> dict[str, float]:
        """Scores values of the variables, by name, on the held-out examples; no scores where there are none."""
        if not self._has_heldout:
            return {}
        scores: dict[str, float] = self._evaluator.score_values(values)[0]
        return scores

    @cached_property
    def _has_heldout(self) -> bool:
        with self._job.data.heldout(batch_size=self._job.batch_size) as batches:
            return bool(self._job.validation_sets) or next(batches, None) is not None

    @cached_property
    def _evaluator(self) -> Any:
        from downpour.worker.evaluator.evaluator import Evaluator

        job = self._job
        return Evaluator(self._model, self.layout, job.data, job.batch_size, job.loss, sets=job.validation_sets)

    def _essentials(self, job: Job) -> list[Any]:
        exchange, cluster = job.exchange, job.cluster
        essentials = [getattr(job, one.name) for one in fields(job) if one.name not in _FREE]
        essentials += [isinstance(job.pace, Sync), isinstance(job.treatment, Compensate), type(job.cadence)]
        essentials += [exchange.codec, exchange.factors, cluster.num_ps]
        if any(variable.name.endswith(ASSIGNED) for variable in self.layout.variables):
            essentials += [cluster.most_workers, exchange.overlap, job.average]
        return essentials


def _refuse_stateful(model: Any) -> None:
    import keras

    for layer in keras_private.layers_of(model):
        if isinstance(layer, keras.layers.RNN) and layer.stateful:
            raise ValueError(
                f"layer {layer.name} is stateful: its state lies in the model, which all workers of a simulation "
                "share; set stateful=False"
            )
