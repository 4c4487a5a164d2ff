"""Delivers events in a thread of their own, one after another, so that nothing waits for who hears them.

Threads: any may add; one makes the deliveries.
"""

from __future__ import annotations

import queue
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, Generic, TypeVar

from absl import logging

MOST_WAITING = 100  # events
T = TypeVar("T")


class Deliveries(Generic[T]):
    """A queue of events and the thread that delivers them.

    Args:
        whose: Who hears them, for messages, such as `callbacks`.
        deliver: Delivers one; returns whether another may follow.
    """

    def __init__(self, whose: str, deliver: Callable[[T], bool]) -> None:
        self._whose, self._deliver = whose, deliver
        self._waiting = queue.Queue[T | None](MOST_WAITING)
        self._thread = threading.Thread(target=self._run, name=whose, daemon=True)
        self._left_out = 0

    def start(self) -> None:
        """Starts the thread; what is added before, or without, is dropped."""
        self._thread.start()

    def add(self, event: T) -> None:
        """Adds an event; it is dropped where too many wait, which is logged once."""
        if not self._thread.is_alive():
            return
        try:
            self._waiting.put_nowait(event)
        except queue.Full:
            self._left_out += 1
            if self._left_out == 1:
                words = "%s are slower than the job: %d events wait; those that follow are left out meanwhile"
                logging.warning(words, self._whose, MOST_WAITING)

    def finish(self, last: T, within_s: float) -> None:
        """Waits up to `within_s` seconds for the delivery of all events, and of a last one."""
        if not self._thread.is_alive():
            return
        deadline = time.monotonic() + within_s
        try:
            for event in (last, None):
                self._waiting.put(event, timeout=max(0.0, deadline - time.monotonic()))
        except queue.Full:
            pass
        self._thread.join(max(0.0, deadline - time.monotonic()))
        if self._thread.is_alive():
            words = "%s have not returned within %.0f s; the job ends without them"
            logging.warning(words, self._whose, within_s)

    def close(self) -> None:
        """Has the thread end once the delivery under way has returned; the other events are dropped."""
        while self._thread.is_alive():
            try:
                self._waiting.put_nowait(None)
                return
            except queue.Full:
                try:
                    self._waiting.get_nowait()
                except queue.Empty:
                    pass

    def _run(self) -> None:
        while (event := self._waiting.get()) is not None:
            if not self._deliver(event):
                return


def described(heard: Any, method: str, error: BaseException) -> str:
    """Names an object's method, its exception, and the line that raised it: in the object's own file, if any."""
    frames = traceback.extract_tb(error.__traceback__)[1:]  # without our own
    code: Any = getattr(getattr(type(heard), method), "__code__", None)
    own = [frame for frame in frames if code is not None and frame.filename == code.co_filename]
    place = f" ({Path(own[-1].filename).name}:{own[-1].lineno})" if own else ""
    said = " ".join(str(error).split())
    return f"{type(heard).__name__}.{method} raised {type(error).__name__}{f': {said}' if said else ''}{place}"
