"""Which epoch a checkpoint ends, and the mean loss of that epoch. Pure: no clock, no I/O, no threads.

Guarded by the chief's lock.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Epochs:
    """The epochs of one job, as its checkpoints see them.

    Workers report once a second, so the loss at a checkpoint is that of the steps reported by then.

    Attributes:
        steps_per_epoch: Global steps of an epoch.
        num_steps: Global steps until the job ends; its last checkpoint ends an epoch that is cut off, too.
    """

    steps_per_epoch: int = 1
    num_steps: int = 0
    _written: int = -1  # last epoch whose end a checkpoint has passed
    _scored: int = -1  # last epoch whose end a scored checkpoint has passed
    _steps: int = 0  # of all workers, reported by the end of epoch `_written`
    _loss_sum: float = 0.0  # over these
    _logs: dict[int, dict[str, float]] = field(default_factory=dict)  # of checkpoints that are not scored yet, by step

    def of(self, step: int) -> int:
        """Returns the last epoch, counted from 0, that has ended at a step; -1 within the first."""
        if 0 < self.num_steps <= step:
            return -(-step // self.steps_per_epoch) - 1
        return step // self.steps_per_epoch - 1

    def wrote(self, step: int, steps: int, loss_sum: float, rate: float) -> None:
        """Records that a checkpoint is written; of one step, the first counts.

        Args:
            step: Its global step.
            steps: Steps that workers have reported, all together.
            loss_sum: The sum of their losses.
            rate: The learning rate.
        """
        if step in self._logs:
            return
        if steps < self._steps:  # reports were lost with a journal
            self._steps, self._loss_sum = 0, 0.0
        logs = {"learning_rate": rate}
        if steps > self._steps:
            logs["loss"] = (loss_sum - self._loss_sum) / (steps - self._steps)
        self._logs[step] = logs
        if self.of(step) > self._written:
            self._written, self._steps, self._loss_sum = self.of(step), steps, loss_sum

    def scored(self, step: int) -> tuple[int | None, dict[str, float]]:
        """Records that a checkpoint has been scored, so that those before it will not be.

        Returns:
            The epoch that ended with it or since the last that was scored, None if none did; and loss and rate.
        """
        logs = self._logs.pop(step, {})
        self._logs = {other: more for other, more in self._logs.items() if other > step}
        epoch = self.of(step)
        if epoch <= self._scored:
            return None, logs
        self._scored = epoch
        return epoch, logs

    def state(self) -> dict[str, Any]:
        """Returns what a later chief needs, as JSON values."""
        totals = {"written": self._written, "scored": self._scored, "steps": self._steps, "loss_sum": self._loss_sum}
        return totals | {"logs": {str(step): dict(logs) for step, logs in self._logs.items()}}

    def continued(self, state: Mapping[str, Any]) -> Epochs:
        """Returns epochs of the same length that continue from a state; an empty one is that of a new job.

        Raises:
            KeyError, TypeError, ValueError, AttributeError: It is not a state of epochs.
        """
        if not state:
            return Epochs(self.steps_per_epoch, self.num_steps)
        logs = {int(step): {str(k): float(v) for k, v in logs.items()} for step, logs in state["logs"].items()}
        written, scored, steps = (int(state[key]) for key in ("written", "scored", "steps"))
        return Epochs(self.steps_per_epoch, self.num_steps, written, scored, steps, float(state["loss_sum"]), logs)
