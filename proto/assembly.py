"""gRPC messages put together from the bytes of a stream, in buffers that are used again. No sockets.

Threads: any may take and give back buffers; an assembler is its connection's.
"""

from __future__ import annotations

import threading

# The largest messages are chunks: 2^20 elements of float32 with the base they were computed from are 8 MB, a
# specification with the layout of ten thousand variables 2 MB, and factors are only sent up to `MAX_FACTORS_BYTES`.
MAX_MESSAGE_BYTES = 16 << 20
MAX_FACTORS_BYTES = 12 << 20

PREFIX_BYTES = 5  # of a gRPC message: whether it is compressed, and its length
_HEADER_ROOM = 1 << 12  # of a buffer, beyond the power of two that a chunk's payload is


class TooLarge(Exception):
    """A message is longer than may be, or compressed; its stream cannot go on."""


class Buffers:
    """Buffers for messages, used again and again.

    Args:
        most: Free buffers that are kept.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._lock = threading.Lock()
        self._free: list[bytearray] = []

    def take(self, num_bytes: int) -> bytearray:
        """One of at least so many bytes."""
        size = (1 << max(14, (num_bytes - 1 - _HEADER_ROOM).bit_length())) + _HEADER_ROOM
        with self._lock:
            for i in range(len(self._free) - 1, -1, -1):  # the latest is the one in the cache
                if len(self._free[i]) == size:
                    return self._free.pop(i)
        return bytearray(size)

    def give_back(self, buffer: bytearray) -> None:
        """Nobody uses it any more."""
        with self._lock:
            self._free.append(buffer)
            if len(self._free) > self._most:
                del self._free[0]


class Assembler:
    """Puts gRPC messages together from the bytes of a stream; says where the next ones belong."""

    def __init__(self, buffers: Buffers) -> None:
        self._buffers = buffers
        self._prefix = memoryview(bytearray(PREFIX_BYTES))
        self._message: bytearray | None = None
        self._length = self._filled = 0

    @property
    def is_inside(self) -> bool:
        """Whether a message has begun and not ended."""
        return self._message is not None or self._filled > 0

    def room(self) -> memoryview:
        """Where the next bytes belong; empty only for a message without any."""
        if self._message is None:
            return self._prefix[self._filled :]
        return memoryview(self._message)[self._filled : self._length]

    def took(self, count: int) -> tuple[bytearray, int] | None:
        """So many bytes have come; returns the message that they complete, and its length.

        Raises:
            TooLarge: See there.
        """
        self._filled += count
        if self._message is None and self._filled == PREFIX_BYTES:
            self._length = int.from_bytes(self._prefix[1:], "big")
            if self._length > MAX_MESSAGE_BYTES:
                raise TooLarge(f"Received message larger than max ({self._length} vs. {MAX_MESSAGE_BYTES})")
            if self._prefix[0]:
                raise TooLarge("compressed messages are not taken")
            self._message, self._filled = self._buffers.take(self._length), 0
        if self._message is None or self._filled < self._length:
            return None
        whole = self._message, self._length
        self._message, self._filled = None, 0
        return whole
