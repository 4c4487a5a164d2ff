"""The only code that reads the kernel's `struct tcp_info` (Linux) at raw offsets: when a connection received data last.

A thread that waits for a message of megabytes cannot know how long ago its last byte came; the kernel can. Whether the
structure is as expected is checked once a process, with a connection to itself.

Threads: any.
"""

from __future__ import annotations

import functools
import socket
import struct
import sys
import time

_LAST_DATA_RECEIVED = struct.Struct("@52xI")  # in a prefix of the structure; milliseconds
_CHECK_S = 0.03  # longer than a tick of the kernel's clock
_TRIES = 3  # the process may be interrupted in the middle of the check


def silent_s(raw: socket.socket) -> float:
    """Returns the seconds since the kernel received the last byte; call it only if `is_usable`."""
    info = raw.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _LAST_DATA_RECEIVED.size)
    return float(_LAST_DATA_RECEIVED.unpack(info)[0] / 1000)


@functools.cache
def is_usable() -> bool:
    """Whether `silent_s` works here; checked once, which takes some hundredths of a second."""
    if sys.platform != "linux":
        return False
    try:
        return any(_is_as_expected() for _ in range(_TRIES))
    except (OSError, struct.error):
        return False


def _is_as_expected() -> bool:
    """Whether the value follows the time, and begins anew when a byte arrives."""
    began = time.monotonic()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        near = socket.create_connection(listener.getsockname())
        far, _ = listener.accept()
    with near, far:
        time.sleep(_CHECK_S)
        before = silent_s(far)
        is_time = _CHECK_S / 3 <= before <= time.monotonic() - began + _CHECK_S
        near.send(b"x")
        far.recv(1)
        return is_time and silent_s(far) < before
