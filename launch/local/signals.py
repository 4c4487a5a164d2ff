"""Calls a function at SIGINT, SIGTERM and SIGHUP, and waits without missing one; for the main thread of a command."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_LOOK_EVERY_S = 0.1


@contextlib.contextmanager
def handled(action: Callable[[int], object]) -> Iterator[None]:
    """Calls `action` with the number of each signal during the block; afterwards the previous handlers are back.

    Raises:
        ValueError: The caller is not the main thread.
    """
    before = {number: signal.signal(number, lambda number, _: action(number)) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def wait(event: threading.Event, timeout_s: float | None = None) -> bool:
    """As `event.wait`, while handlers run at once, whichever thread of this process the kernel gives a signal to.

    A thread that starts a process blocks and unblocks signals meanwhile, and may so take one that is meant for the main
    thread. Only the main thread calls handlers, and nothing wakes it then: a plain wait would go on to its end.
    """
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    while deadline is None or time.monotonic() < deadline:
        left = _LOOK_EVERY_S if deadline is None else min(_LOOK_EVERY_S, deadline - time.monotonic())
        if event.wait(max(left, 0.0)):
            return True
    return event.is_set()
