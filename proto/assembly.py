"""gRPC messages put together from the bytes of a stream, in buffers that are used again. No sockets.

Threads: any may take and give back buffers; an assembler is its connection's.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

# The largest messages are chunks: 2^20 elements of float32 with the base they were computed from are 8 MB, a
# specification with the layout of ten thousand variables 2 MB, and factors are only sent up to `MAX_FACTORS_BYTES`.
MAX_MESSAGE_BYTES = 16 << 20
MAX_FACTORS_BYTES = 12 << 20

PREFIX_BYTES = 5  # of a gRPC message: whether it is compressed, and its length
_HEADER_ROOM = 1 << 12  # of a buffer, beyond the power of two that a chunk's payload is
_BEGINNING_BYTES = 128  # of a longer message, that are enough to tell where the rest belongs

# Takes the beginning of a message and its length. Gives where the rest of it belongs, or None for a buffer; it has put
# away what it needs of the beginning.
Place = Callable[[memoryview, int], memoryview | None]


class TooLarge(Exception):
    """A message is longer than may be, or compressed; its stream cannot go on."""


def check_length(num_bytes: int) -> None:
    """Raises `TooLarge` when a message to be sent is longer than may be."""
    if num_bytes > MAX_MESSAGE_BYTES:
        raise TooLarge(f"Sent message larger than max ({num_bytes} vs. {MAX_MESSAGE_BYTES})")


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
    """Puts gRPC messages together from the bytes of a stream; says where the next ones belong.

    Args:
        buffers: For messages.
        place: Says of longer ones whether they belong elsewhere.
    """

    def __init__(self, buffers: Buffers, place: Place | None = None) -> None:
        self._buffers = buffers
        self._place = place
        self._prefix = memoryview(bytearray(PREFIX_BYTES))
        self._message: bytearray | None = None
        self._room = self._prefix  # for as much as belongs to one place
        self._filled = 0  # of it
        self._length = 0  # of the message
        self._is_beginning = False  # only the first bytes of it are expected yet

    @property
    def is_inside(self) -> bool:
        """Whether a message has begun and not ended."""
        return self._room is not self._prefix or self._filled > 0

    def room(self) -> memoryview:
        """Where the next bytes belong; empty only for a message without any."""
        return self._room[self._filled :]

    def took(self, count: int) -> tuple[bytearray | None, int] | None:
        """So many bytes have come; returns the message that they complete and its length; no message if it is placed.

        Raises:
            TooLarge: See there.
        """
        self._filled += count
        if self._room is self._prefix and self._filled == PREFIX_BYTES:
            self._length = int.from_bytes(self._prefix[1:], "big")
            if self._length > MAX_MESSAGE_BYTES:
                raise TooLarge(f"Received message larger than max ({self._length} vs. {MAX_MESSAGE_BYTES})")
            if self._prefix[0]:
                raise TooLarge("compressed messages are not taken")
            self._is_beginning = self._place is not None and self._length > _BEGINNING_BYTES
            self._begin(_BEGINNING_BYTES if self._is_beginning else self._length)
        if self._room is self._prefix or self._filled < len(self._room):
            return None
        if self._is_beginning:
            self._is_beginning = False
            self._find_place()
            return None
        whole = self._message, self._length
        self._message, self._room, self._filled = None, self._prefix, 0
        return whole

    def _begin(self, num_bytes: int) -> None:
        self._message = self._buffers.take(num_bytes)
        self._room, self._filled = memoryview(self._message)[:num_bytes], 0

    def _find_place(self) -> None:
        assert self._place is not None
        beginning, used = self._room, self._message
        room = self._place(beginning, self._length)
        if room is not None:
            self._message, self._room, self._filled = None, room, 0
        else:
            self._begin(self._length)
            self._room[: len(beginning)] = beginning
            self._filled = len(beginning)
        if used is not None:
            self._buffers.give_back(used)
