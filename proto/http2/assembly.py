"""Assembles gRPC messages from the bytes of a stream, in reused buffers. No sockets.

Threads: any may take and give back buffers. An inbox belongs to its connection: the thread that reads the connection
calls `room` and `took`, another may take the messages; all calls but `Inbox.room` are made under the connection's lock.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable

# The largest messages are chunks: 2^20 elements of float32 with the base they were computed from are 8 MB, a
# specification with the layout of ten thousand variables 2 MB, and factors are only sent up to `MAX_FACTORS_BYTES`.
MAX_MESSAGE_BYTES = 16 << 20
MAX_FACTORS_BYTES = 12 << 20

PREFIX_BYTES = 5  # of a gRPC message: whether it is compressed, and its length
_HEADER_ROOM = 1 << 12  # of a buffer, beyond the power of two that a chunk's payload is
_BEGINNING_BYTES = 128  # of a longer message, enough to determine where the rest is written

# Called with the beginning of a message and its length; it must copy what it needs of the beginning. Returns where the
# rest is to be written, or None for a buffer.
PlaceMessage = Callable[[memoryview, int], memoryview | None]


# Messages ready in buffers; what arrives beyond that is kept as bytes. Every buffer has 20 KB at least.
_MAX_READY = 16
_SPILL_BYTES = 1 << 16  # read at a time


class Unreadable(Exception):
    """A message is compressed, though the call has named no compression; its stream cannot continue."""


class TooLarge(Unreadable):
    """A message exceeds the size limit."""


def check_length(num_bytes: int) -> None:
    """Raises `TooLarge` if a message to be sent exceeds the size limit."""
    if num_bytes > MAX_MESSAGE_BYTES:
        raise TooLarge(f"Sent message larger than max ({num_bytes} vs. {MAX_MESSAGE_BYTES})")


class Buffers:
    """A pool of message buffers.

    Args:
        most: Maximum number of free buffers kept.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._lock = threading.Lock()
        self._free: list[bytearray] = []

    def take(self, num_bytes: int) -> bytearray:
        """Returns a buffer of at least `num_bytes`."""
        if not num_bytes:
            return bytearray()
        size = (1 << max(14, (num_bytes - 1 - _HEADER_ROOM).bit_length())) + _HEADER_ROOM
        with self._lock:
            for i in range(len(self._free) - 1, -1, -1):  # the one given back last is in the cache
                if len(self._free[i]) == size:
                    return self._free.pop(i)
        return bytearray(size)

    def give_back(self, buffer: bytearray) -> None:
        """Returns an unused buffer to the pool."""
        if not buffer:
            return
        with self._lock:
            self._free.append(buffer)
            if len(self._free) > self._most:
                del self._free[0]


class Assembler:
    """Assembles gRPC messages from the bytes of a stream.

    Args:
        buffers: Buffers for messages.
        place: Decides where the rest of a longer message is written.
    """

    def __init__(self, buffers: Buffers, place: PlaceMessage | None = None) -> None:
        self._buffers = buffers
        self._place = place
        self._prefix = memoryview(bytearray(PREFIX_BYTES))
        self._message: bytearray | None = None
        self._room = self._prefix  # where the current part is written
        self._filled = 0  # bytes of it
        self._length = 0  # of the message
        self._is_beginning = False  # only the first bytes of the message are expected so far

    @property
    def is_inside(self) -> bool:
        """Whether a message has begun and not ended."""
        return self._room is not self._prefix or self._filled > 0

    def give_back(self, buffer: bytearray) -> None:
        """Returns the buffer of a message that is no longer used."""
        self._buffers.give_back(buffer)

    def room(self) -> memoryview:
        """Returns where to write the next bytes; never empty."""
        return self._room[self._filled :]

    def took(self, count: int) -> tuple[bytearray | None, int] | None:
        """Handles `count` bytes; returns the message they complete, if any (None if it was placed), and its length.

        Raises:
            Unreadable: The message is compressed or exceeds the size limit.
        """
        self._filled += count
        if self._room is self._prefix and self._filled == PREFIX_BYTES:
            self._length = int.from_bytes(self._prefix[1:], "big")
            if self._length > MAX_MESSAGE_BYTES:
                raise TooLarge(f"Received message larger than max ({self._length} vs. {MAX_MESSAGE_BYTES})")
            if self._prefix[0]:
                raise Unreadable("a message is marked as compressed, and the call has named no grpc-encoding")
            self._is_beginning = self._place is not None and self._length > _BEGINNING_BYTES
            self._begin(_BEGINNING_BYTES if self._is_beginning else self._length)
            if not self._length:
                return self._whole()
        if self._room is self._prefix or self._filled < len(self._room):
            return None
        if self._is_beginning:
            self._is_beginning = False
            self._find_place()
            return None
        return self._whole()

    def _whole(self) -> tuple[bytearray | None, int]:
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


class Inbox:
    """Messages of one stream: in buffers while their reader keeps up, and beyond that as received bytes.

    Args:
        assembler: Assembles the messages.
        window: Initial flow-control window, in bytes.

    Attributes:
        is_wanted: Whether messages are taken. Before that none is assembled.
        window: Bytes that the peer may still send.
        held: Bytes received and not taken; of the message that is being assembled, only those that are not in its
            buffer.
        error: Why no more messages can be assembled; None if they can.
    """

    def __init__(self, assembler: Assembler, window: int) -> None:
        self._assembler = assembler
        self._ready: deque[tuple[bytearray | None, int]] = deque()
        self._spilled = bytearray()
        self._spill = memoryview(b"")  # room for bytes to be spilled, while they are read
        self.is_wanted = False
        self.window = window
        self.held = 0
        self.error: Unreadable | None = None

    @property
    def has_next(self) -> bool:
        """Whether a message can be taken, or no more can be assembled."""
        return bool(self._ready) or self.error is not None

    @property
    def has_first(self) -> bool:
        """Whether the first message has arrived or is known to be unreadable; for an inbox not wanted yet."""
        data = self._spilled
        if len(data) < PREFIX_BYTES:
            return False
        length = int.from_bytes(data[1:PREFIX_BYTES], "big")
        return len(data) >= PREFIX_BYTES + length or length > MAX_MESSAGE_BYTES or data[0] != 0

    @property
    def is_inside(self) -> bool:
        """Whether a message has begun and not ended."""
        return bool(self._spilled) or self._assembler.is_inside

    def room(self, most: int) -> memoryview:
        """Returns where to write at most `most` bytes; call `took` before calling it again."""
        if self.is_wanted and not self._spilled and len(self._ready) < _MAX_READY:
            self._spill = memoryview(b"")
            return self._assembler.room()[:most]
        self._spill = memoryview(bytearray(min(most, _SPILL_BYTES)))
        return self._spill

    def took(self, count: int) -> bool:
        """Handles `count` bytes written to `room`; returns whether there is more to take, or an error."""
        if not self._spill:
            return self._put(count)
        self._spilled += self._spill[:count]
        self.held += count
        return self.is_wanted and self._unspill()

    def want(self) -> None:
        """Starts to assemble messages."""
        self.is_wanted = True
        self._unspill()

    def take(self) -> tuple[bytearray | None, int] | None:
        """Returns the next message's buffer, to be given back, and its length; no buffer if it was placed.

        Returns None if no message is complete.
        """
        if not self._ready:
            return None
        message = self._ready.popleft()
        self.held -= message[1]
        if self._spilled:
            self._unspill()
        return message

    def clear(self) -> None:
        """Discards all messages, since none is taken any more."""
        while self._ready:
            if buffer := self._ready.popleft()[0]:
                self._assembler.give_back(buffer)
        self._spilled = bytearray()

    def _put(self, count: int) -> bool:
        try:
            whole = self._assembler.took(count)
        except Unreadable as error:
            self.error = error
            return True
        if whole is None:
            return False
        self._ready.append(whole)
        self.held += whole[1]
        return True

    def _unspill(self) -> bool:
        """Assembles messages from spilled bytes, up to the limit; returns whether there is one, or an error."""
        data, used = memoryview(self._spilled), 0
        while used < len(data) and len(self._ready) < _MAX_READY and self.error is None:
            room = self._assembler.room()
            count = min(len(data) - used, len(room))
            room[:count] = data[used : used + count]
            used += count
            self._put(count)
        data.release()
        del self._spilled[:used]
        self.held -= used
        return self.has_next
