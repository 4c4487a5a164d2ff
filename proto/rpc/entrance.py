"""The listening socket of a server: accepts connections, keeps one for which there is no room, and pauses.

Threads: the acceptor's.
"""

from __future__ import annotations

import select
import selectors
import socket
import time

_PAUSE_S = 0.1  # without accepting, where there is no room


class Entrance:
    """A listening socket in a selector.

    Args:
        listener: The socket, which is closed at the end.
        selector: Notifies of waiting connections, with this object as their data.
    """

    def __init__(self, listener: socket.socket, selector: selectors.BaseSelector) -> None:
        self._listener, self._selector = listener, selector
        self._kept: socket.socket | None = None
        self._resumes_at: float | None = None
        listener.setblocking(False)
        selector.register(listener, selectors.EVENT_READ, self)

    @property
    def is_paused(self) -> bool:
        """Whether it does not accept now."""
        return self._resumes_at is not None

    @property
    def has_kept_one(self) -> bool:
        """Whether a connection that was kept can be accepted again."""
        return self._kept is not None and not self.is_paused

    def accept(self) -> socket.socket:
        """Returns the connection that was kept, or the next one; raises as `socket.accept`."""
        raw, self._kept = self._kept, None
        return raw or self._listener.accept()[0]

    def has_more(self) -> bool:
        """Whether a connection waits in the kernel's queue."""
        return bool(select.select([self._listener], [], [], 0)[0])

    def pause(self, keep: socket.socket | None = None) -> None:
        """Stops accepting for a moment; `keep` is accepted again after it."""
        self._kept = keep
        if self._resumes_at is None:
            self._selector.unregister(self._listener)
        self._resumes_at = time.monotonic() + _PAUSE_S

    def resume(self, now: float) -> None:
        """Accepts again, after a pause that is over."""
        if self._resumes_at is not None and now >= self._resumes_at:
            self._resumes_at = None
            self._selector.register(self._listener, selectors.EVENT_READ, self)

    def close(self) -> None:
        """Closes the socket, and the connection that was kept."""
        if self._kept:
            self._kept.close()
        self._listener.close()
