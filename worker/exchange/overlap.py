"""The exchanges of a training loop: each between two steps or, with overlap, in flight during the next step.

With overlap the push begins at once and the pull as late as it can: the later it begins, the fewer updates of other
workers its parameters lack. It should have ended when the step under way ends (`PullTimes`); a pull that is late
delays its worker and no other, and is counted. A loop that asks for the answer makes the pull begin at once.

Whether to overlap is fixed by the job, or the chief decides and changes it during training
(`downpour.worker.chief.overlap`); a change takes effect with the next exchange.

No TensorFlow, no sockets.
"""

from __future__ import annotations

import time
from collections import deque
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass
from typing import Any, Protocol

from downpour.worker.exchange.exchange import Answer, Exchanger, Gradients

_ACKNOWLEDGED_WITHIN_S = 4.0  # deadline of a push in flight when the worker is asked to stop
_REMEMBERED = 8  # steps and pulls
_LEAST = 4  # of these before a pull is delayed
_SLOWER = 1.25  # than the slowest pull remembered, the next may be
_SPARE_S = 0.002


class PullTimes:
    """Predicts for how long a pull may be delayed.

    A step is taken to be as short as the shortest of the last ones, a pull to be a quarter slower than their slowest.
    """

    def __init__(self) -> None:
        self._steps_s = deque[float](maxlen=_REMEMBERED)
        self._pulls_s = deque[float](maxlen=_REMEMBERED)

    def add(self, step_s: float, pull_s: float) -> None:
        """Records how long a step lasted, the wait for a batch included, and how long the pull during it."""
        self._steps_s.append(step_s)
        self._pulls_s.append(pull_s)

    def delay_s(self) -> float:
        """Seconds from the beginning of a step until the pull for the next one should begin; 0 for the first few."""
        if len(self._steps_s) < _LEAST:
            return 0.0
        return max(0.0, min(self._steps_s) - _SLOWER * max(self._pulls_s) - _SPARE_S)


@dataclass(frozen=True)
class Course:
    """What an exchange meant for the training loop.

    Attributes:
        waited_s: Seconds that the loop waited for it.
        ahead: Whether it was in flight during a step.
        own: Part of its push's staleness, in pushes: this worker's own push before it, which was in flight when the
            parameters were pulled.
        early: Part of it: what other workers pushed between that pull and the beginning of the step. Estimated: what
            they pushed from that pull to this push, in proportion to time. The rest is what they pushed afterwards.
    """

    waited_s: float = 0.0
    ahead: bool = False
    own: float = 0.0
    early: float = 0.0


@dataclass
class _Started:
    """An exchange that has been started.

    Attributes:
        answer: Its answer.
        position: Position of the leases that its push reaches.
        pushes: Whether it has a push.
        own: This worker's pushes that the parameters lack from which its gradients were computed, 0 or 1.
        read_s: When these parameters were read; see `Answer.read_s`.
        step_s: When the step began that computed them.
    """

    answer: Future[Answer]
    position: int = 0
    pushes: bool = False
    own: int = 0
    read_s: float = 0.0
    step_s: float = 0.0

    def course(self, answer: Answer, waited_s: float, *, ahead: bool) -> Course:
        """Returns what it meant for the training loop; see `Course`."""
        own = min(float(self.own), answer.staleness)
        whole_s = answer.begun_s + answer.push_s - self.read_s
        share = (self.step_s - self.read_s) / whole_s if self.pushes and whole_s > 0 else 0.0
        return Course(waited_s, ahead, own, share * (answer.staleness - own))


class Counts(Protocol):
    """What counts exchanges; `downpour.worker.reporter.Reporter`."""

    overlap: bool

    def exchanged(self, answer: Answer, records_done: int, course: Course) -> None:
        """Counts an answered exchange."""
        ...


class Exchanges:
    """The exchanges of one training loop.

    Args:
        exchange: This worker's exchange with the shards.
        reporter: Counts the answered exchanges.
        leaving: Done when this worker is asked to stop; from then on only a push in flight is waited for.
        overlap: Whether to overlap; None: as `reporter.overlap` says at each exchange.
    """

    def __init__(self, exchange: Exchanger, reporter: Counts, leaving: Future[None], overlap: bool | None) -> None:
        self._exchange, self._reporter, self._leaving, self._fixed = exchange, reporter, leaving, overlap
        self._ahead: _Started | None = None  # in flight during a step
        self._times = PullTimes()
        self._step_s = self._read_s = 0.0  # when the step under way began, and when its parameters were read

    def begin(self) -> Answer | None:
        """Pulls the first parameters; with overlap, starts the pull for the second step."""
        answer, _ = self._answer(self._exchange.start())
        self._begin_step(answer, from_ahead=False)
        return answer

    def next(self, gathered: Gradients | None, *, pull: bool, position: int) -> Answer | None:
        """Pushes what was gathered, if anything, and pulls.

        Args:
            gathered: What to push.
            pull: Whether to pull after it; with overlap there is always a pull.
            position: Position of the leases that the push reaches.

        Returns:
            The answer or, with overlap, that of the exchange before. None if this worker is asked to stop before.
        """
        before, self._ahead = self._ahead, None
        own = int(before is not None and before.pushes)
        started = self._exchange.start
        if before is not None:
            latest = self._take(before, step_s=time.monotonic() - self._step_s)
            if latest is None or self._leaving.done():
                return latest
            if self._overlaps:
                answer = started(gathered, ahead=True, delay_s=self._times.delay_s())
                self._ahead = self._started(answer, gathered, position, own)
                self._begin_step(latest, from_ahead=True)
                return latest
        latest = self._take(self._started(started(gathered, pull=pull), gathered, position, own))
        self._begin_step(latest, from_ahead=False)
        return latest

    def close(self) -> None:
        """Waits for the exchange in flight, if any."""
        if self._ahead is not None:
            self._take(self._ahead)

    @property
    def _overlaps(self) -> bool:
        return self._reporter.overlap if self._fixed is None else self._fixed

    def _started(self, answer: Future[Answer], gathered: Gradients | None, position: int, own: int) -> _Started:
        return _Started(answer, position, gathered is not None, own, self._read_s, self._step_s)

    def _begin_step(self, answer: Answer | None, *, from_ahead: bool) -> None:
        """Records that a step begins with these parameters; starts the pull for the next where none is in flight."""
        if answer is None or answer.parameters is None:
            return
        self._step_s, self._read_s = time.monotonic(), answer.read_s
        if not from_ahead and self._overlaps and not self._leaving.done():
            self._ahead = _Started(self._exchange.start(ahead=True))

    def _take(self, one: _Started, step_s: float | None = None) -> Answer | None:
        """Waits for an exchange and counts it.

        Args:
            one: The exchange.
            step_s: How long the step lasted that it was in flight during; None if it was started after the step.
        """
        latest, waited_s = self._answer(one.answer)
        if latest is not None:
            if step_s is not None:
                self._times.add(step_s, latest.pull_s)
            course = one.course(latest, waited_s, ahead=step_s is not None)
            self._reporter.exchanged(latest, one.position, course)
        return latest

    def _answer(self, under_way: Future[Answer]) -> tuple[Answer | None, float]:
        """Waits for an exchange; returns its answer and the seconds waited.

        If `leaving` is done first, the answer is that of the push alone, or None.
        """
        begin = time.monotonic()
        self._exchange.hurry()
        either: list[Future[Any]] = [under_way, self._leaving]
        wait(either, return_when=FIRST_COMPLETED)
        answer = under_way.result() if under_way.done() else self._exchange.acknowledged(_ACKNOWLEDGED_WITHIN_S)
        return answer, time.monotonic() - begin
