"""Measures whether the threads of this process wait for processors. Threads: any."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

_SCHEDSTAT = "/proc/thread-self/schedstat"  # nanoseconds on a processor, and runnable without one
_REMEMBERED = 7 / 8  # weight kept by earlier times when another push has ended


class Processors:
    """Measures whether threads wait for processors, by Linux's schedstat; elsewhere it reports no waiting."""

    def __init__(self) -> None:
        self._ran = self._waited = 0.0  # nanoseconds, exponentially decayed

    @property
    def are_short(self) -> bool:
        """Whether threads watched recently waited for a processor longer than they ran on one."""
        return self._waited > self._ran

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """Measures the calling thread while the block lasts."""
        ran, waited = _schedstat()
        yield
        ran_now, waited_now = _schedstat()
        # Deliberately not locked: if two threads update at once, the times of one push may be lost.
        self._ran = _REMEMBERED * self._ran + ran_now - ran
        self._waited = _REMEMBERED * self._waited + waited_now - waited


def _schedstat() -> tuple[int, int]:
    try:
        descriptor = os.open(_SCHEDSTAT, os.O_RDONLY)
    except OSError:
        return 0, 0
    try:
        ran, waited, _ = os.read(descriptor, 100).split()
    finally:
        os.close(descriptor)
    return int(ran), int(waited)
