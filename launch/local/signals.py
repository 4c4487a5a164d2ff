"""Calls a function at SIGINT, SIGTERM and SIGHUP; for the main thread of a command."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


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
