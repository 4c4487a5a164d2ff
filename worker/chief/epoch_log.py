"""Losses and scores by epoch, and how far training may run ahead of the checkpoints and scores of its epochs.

Pure: no clock, no I/O. Guarded by the chief's lock, like the coordinator that holds it. Times are seconds of one
monotonic clock. The worker's reports carry their losses by epoch, so an epoch has its loss however short it is.

Where a job asks for a checkpoint at the end of every epoch, an epoch of a few milliseconds would be over before the
chief has heard of its end. So leases are granted only up to

    (c + 1) * R + S positions,    c = min(epochs with a checkpoint, epochs with a score + U)

where R are the positions of an epoch, S = max(R / 2, (W + 1) * B) those of half an epoch, or of what W workers may hold
in batches of B that are not full, and U is one more than there are evaluators. Training waits for at most `_HOLD_S` at
one limit. It waits for no checkpoint where an epoch takes a second or more, and for evaluators only where scoring takes
longer than an epoch.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from downpour.model.data.epochs import ENDLESS, Epochs
from downpour.proto import chief_pb2 as pb

_HOLD_S = 30.0  # the start of an evaluator on a busy machine takes as long
_REPORTS_WITHIN_S = 3.0  # workers report every second
_NO_SCORES = {"kind", "epoch", "step", "seconds", "loss"}  # of an entry


@dataclass
class EpochLog:
    """The epochs of one job.

    Attributes:
        epochs: Which steps make an epoch.
        every: Whether each epoch ends with a checkpoint.
        scored: Whether an evaluator scores it.
        num_workers: Workers that share an epoch.
        num_evaluators: Evaluators that share the checkpoints.
        next: The first epoch that `take` has not returned.
    """

    epochs: Epochs = ENDLESS
    every: bool = False
    scored: bool = False
    num_workers: int = 1
    num_evaluators: int = 1
    next: int = 0
    _sums: dict[int, dict[tuple[int, int], tuple[int, float]]] = field(default_factory=dict)  # by worker, incarnation
    _ended: dict[int, tuple[float, float]] = field(default_factory=dict)  # epoch -> time, seconds of training
    _reported_s: dict[int, float] = field(default_factory=dict)  # worker -> time of its newest report
    _scores: list[tuple[int, dict[str, float]]] = field(default_factory=list)  # by step, in order
    _held: tuple[int, float] = (-1, 0.0)  # limit that a lease waits for, and since when
    _begun: int = 0  # the epoch in which this log began, before which no score is waited for

    def begin(self, entries: Sequence[Mapping[str, Any]], scores: Mapping[int, Mapping[str, float]], step: int) -> None:
        """Continues a job at a step, after `load`: sets `next`, from which on entries of the history are taken back.

        These are of epochs that were cut off, or whose checkpoint was not scored yet.

        Args:
            entries: The epochs in the history, as `take` and the others have yielded them.
            scores: Scores of the job's checkpoints so far, by step.
            step: Steps done.
        """
        self._begun = self.epochs.of(step)
        first = min(self._sums, default=self._begun)  # of those before no loss is known
        noted = {entry["epoch"]: entry for entry in entries}
        again = [epoch for epoch in noted if epoch >= first and self._is_provisional(noted[epoch])]
        self.next = max(first, min(again, default=max(noted, default=-1) + 1))
        epoch = self.next
        while entry := noted.get(epoch):
            self._remember(entry)
            epoch += 1
        for at in sorted(scores):
            self.score(at, scores[at])

    def report(self, report: pb.WorkerReport, now_s: float) -> None:
        """Records the losses of a worker's report."""
        for sums in report.epochs:
            if sums.epoch >= self.next:
                of_epoch = self._sums.setdefault(sums.epoch, {})
                of_epoch[report.worker, report.incarnation] = (sums.steps, sums.loss_sum)
        self._reported_s[report.worker] = math.inf if report.finished else now_s

    def score(self, step: int, metrics: Mapping[str, float]) -> None:
        """Records the scores of the checkpoint of a step."""
        end = self.epochs.end(self.next)
        self._scores = [*(score for score in self._scores if score[0] >= end), (step, dict(metrics))]

    def loss(self, epoch: int) -> float:
        """Mean loss over the steps of an epoch that are reported; NaN without any."""
        sums = self._sums.get(epoch, {}).values()
        steps = sum(count for count, _ in sums)
        return sum(loss for _, loss in sums) / steps if steps else math.nan

    def loss_before(self, step: int) -> float:
        """Mean loss of the epoch that a step ends or, within the first, is in; NaN if no step of it is reported."""
        return self.loss(max(self.epochs.of(step) - 1, 0))

    def newest_loss(self) -> float:
        """Mean loss of the newest epoch of which steps are reported; 0 without any."""
        return self.loss(max(self._sums)) if self._sums else 0.0

    def has_passed(self, before: int, step: int) -> bool:
        """Whether a checkpoint is due at a step, since an epoch has ended after the step `before`."""
        return self.every and self.epochs.of(step) > self.epochs.of(before)

    def must_wait(self, granted: int, checkpoint_step: int, now_s: float) -> bool:
        """Whether no lease is granted at present; see the module.

        Args:
            granted: Positions granted so far, over all epochs.
            checkpoint_step: Step of the newest checkpoint that was begun.
            now_s: The time.
        """
        if not self.every:
            return False
        done = self.epochs.of(checkpoint_step)
        if self.scored:
            scored = self.epochs.of(self._scores[-1][0]) if self._scores else 0
            done = min(done, max(scored, self._begun) + 1 + self.num_evaluators)
        size, batch = self.epochs.num_positions, self.epochs.positions_in_step
        limit = (done + 1) * size + max(size // 2, (self.num_workers + 1) * batch)
        if granted < limit:
            return False
        if self._held[0] != limit:
            self._held = limit, now_s
        return now_s - self._held[1] < _HOLD_S

    @property
    def most_leased(self) -> int:
        """Positions that workers share at once: an epoch, which may be shorter than the data, if training waits."""
        return self.epochs.num_positions if self.every else ENDLESS.num_positions

    def must_tell(self, worker: int, ended_s: float, now_s: float) -> bool:
        """Whether a worker has not reported since training ended, but soon will; the answer to it ends the worker."""
        return self._reported_s.get(worker, -math.inf) < ended_s and now_s < ended_s + _REPORTS_WITHIN_S

    def saw(self, step: int, now_s: float, train_s: float) -> None:
        """Records how many steps are done, and when."""
        epoch = max([self.next, *(epoch + 1 for epoch in self._ended)])
        while self.epochs.end(epoch) <= step:
            self._ended[epoch] = now_s, train_s
            epoch += 1

    def has_losses(self) -> bool:
        """Whether every worker has reported since the end of each epoch that is to be taken."""
        return self._has_heard(max((at_s for at_s, _ in self._ended.values()), default=-math.inf))

    def take(self, now_s: float) -> Iterator[dict[str, Any]]:
        """Yields each epoch that is complete, once, in order: `epoch`, `step`, `seconds`, `loss` and its scores.

        An epoch is complete when its steps are done, every worker has reported since, and, if each has a checkpoint
        that is scored, it is scored. Its scores are those of the first checkpoint after its end, if that is of before
        the end of the next epoch but one; of the next epoch, if not every epoch has a checkpoint.
        """
        while self.next in self._ended:
            at_s, train_s = self._ended[self.next]
            if not self._has_heard(at_s) and now_s < at_s + _REPORTS_WITHIN_S:
                return
            if self.every and self.scored and not any(step >= self.epochs.end(self.next) for step, _ in self._scores):
                return
            yield from self._taken(self.epochs.end(self.next), train_s)

    def take_rest(self, num_steps: int, train_s: float) -> Iterator[dict[str, Any]]:
        """Yields what is left when a job has ended with `num_steps` steps: an epoch that is cut off, too."""
        while self.next <= self.epochs.of(num_steps - 1):
            _, seconds = self._ended.get(self.next, (0.0, train_s))
            yield from self._taken(min(self.epochs.end(self.next), num_steps), seconds)

    def unscored(self) -> Iterator[dict[str, Any]]:
        """Yields the epochs that wait for their scores, without them; a chief that continues the job yields them again.

        For a job that is stopped, after `take`.
        """
        for epoch in sorted(self._ended):
            if not math.isnan(loss := self.loss(epoch)):
                yield _entry(epoch, self.epochs.end(epoch), self._ended[epoch][1], loss, {})

    def state(self) -> list[Sequence[float]]:
        """Returns the losses of epochs that are not taken, as JSON values."""
        return [[epoch, *who, *sums] for epoch, of_epoch in self._sums.items() for who, sums in of_epoch.items()]

    def load(self, state: Sequence[Sequence[float]]) -> None:
        """Adds the losses that `state` returned.

        Raises:
            TypeError, ValueError: It is not such a state.
        """
        for epoch, worker, incarnation, steps, loss in state:
            self._sums.setdefault(int(epoch), {})[int(worker), int(incarnation)] = (int(steps), float(loss))

    def _has_heard(self, since_s: float) -> bool:
        reported_s = self._reported_s.values()
        return since_s == -math.inf or (len(reported_s) >= self.num_workers and min(reported_s) >= since_s)

    def _of(self, epoch: int) -> dict[str, float] | None:
        """The scores of an epoch, if it has some."""
        first, beyond = self.epochs.end(epoch), self.epochs.end(epoch + (2 if self.every else 1))
        return next((metrics for step, metrics in self._scores if first <= step < max(beyond, first + 1)), None)

    def _taken(self, step: int, train_s: float) -> Iterator[dict[str, Any]]:
        epoch, loss, scores = self.next, self.loss(self.next), self._of(self.next)
        if scores is None and self._scores and self.every and step < self.epochs.end(epoch):  # it is cut off
            scores = self._scores[-1][1]
        self.next += 1
        self._sums = {key: value for key, value in self._sums.items() if key >= self.next}
        self._ended.pop(epoch, None)
        if scores or not math.isnan(loss):
            yield _entry(epoch, step, train_s, loss, scores or {})

    def _remember(self, entry: Mapping[str, Any]) -> None:
        """Continues with what an entry says, which is taken back."""
        epoch = entry["epoch"]
        num_steps = entry["step"] - (self.epochs.end(epoch - 1) if epoch else 0)
        if "loss" in entry:
            self._sums.setdefault(epoch, {(-1, 0): (num_steps, num_steps * float(entry["loss"]))})
        if entry["step"] >= self.epochs.end(epoch):
            self._ended[epoch] = -math.inf, float(entry["seconds"])

    def _is_provisional(self, entry: Mapping[str, Any]) -> bool:
        is_cut_off = entry["step"] < self.epochs.end(entry["epoch"])
        return is_cut_off or (self.every and self.scored and _NO_SCORES.issuperset(entry))


def _entry(epoch: int, step: int, train_s: float, loss: float, scores: Mapping[str, float]) -> dict[str, Any]:
    known = {} if math.isnan(loss) else {"loss": loss}
    return {"epoch": epoch, "step": step, "seconds": round(train_s, 2), **known, **scores}
