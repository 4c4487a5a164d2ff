"""Calls the methods of own callbacks, one after another, in a thread of their own, so that nothing waits for them.

Threads: any may add an event, except `finish`, which is for the chief's main thread; one thread makes the calls.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from absl import logging

from downpour.worker.chief.callbacks import Callback
from downpour.worker.chief.deliveries import Deliveries, described
from downpour.worker.chief.state import JobState

FINISH_WITHIN_S = 600.0  # for calls that are waiting when training is over, and `on_train_end`
_METHODS = ("on_epoch_end", "on_checkpoint", "on_train_end")


@dataclass(frozen=True)
class _Event:
    method: str
    arguments: tuple[Any, ...]


class Events:
    """The events of one job. An exception of a callback ends the job with a failure, after which nothing is called.

    Args:
        callbacks: All callbacks of the job; those that override a method are called.
        state: The job's state.
    """

    def __init__(self, callbacks: Sequence[Callback], state: JobState) -> None:
        self._callbacks = [one for one in callbacks if any(_overrides(one, method) for method in _METHODS)]
        self._state = state
        self._deliveries = Deliveries[_Event]("callbacks", self._deliver)
        if self._callbacks:
            self._deliveries.start()

    def checkpoint(self, step: int, path: str) -> None:
        """A checkpoint has been written: `Callback.on_checkpoint`."""
        self._deliveries.add(_Event("on_checkpoint", (step, path)))

    def epoch(self, epoch: int, logs: dict[str, float]) -> None:
        """An epoch has ended: `Callback.on_epoch_end`."""
        self._deliveries.add(_Event("on_epoch_end", (epoch, logs)))

    def finish(self, logs: dict[str, float]) -> None:
        """Training is over: waits for the calls of all events, then of `on_train_end`, up to `FINISH_WITHIN_S`."""
        self._deliveries.finish(_Event("on_train_end", (logs,)), FINISH_WITHIN_S)

    def close(self) -> None:
        """Has the thread end once the call under way has returned; the other events are dropped."""
        self._deliveries.close()

    def _deliver(self, event: _Event) -> bool:
        for callback in self._callbacks:
            if not _overrides(callback, event.method):
                continue
            arguments = [dict(given) if isinstance(given, dict) else given for given in event.arguments]
            try:
                getattr(callback, event.method)(*arguments)
            except BaseException as error:  # of the user's code, `SystemExit` included: this thread must not vanish
                logging.debug("a callback failed", exc_info=True)
                self._fail(described(callback, event.method, error))
                return False
            if callback.stop_training:
                self._stop(type(callback).__name__)
        return True

    def _stop(self, name: str) -> None:
        with self._state.journaled():
            self._state.coordinator.stop("callback", f"{name} set stop_training")
            self._state.changed.notify_all()

    def _fail(self, failure: str) -> None:
        with self._state.changed:
            self._state.coordinator.failure = self._state.coordinator.failure or failure
            self._state.changed.notify_all()


def _overrides(callback: Callback, method: str) -> bool:
    return getattr(type(callback), method) is not getattr(Callback, method)
