"""gRPC messages put together from the bytes of a stream, in buffers that are used again. No sockets.

Threads: any may take and give back buffers. An inbox is its connection's: the thread that reads the connection asks for
room and says when it is filled, another may take the messages; all of it but `Inbox.room` under the connection's lock.
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
_BEGINNING_BYTES = 128  # of a longer message, that are enough to tell where the rest belongs

# Takes the beginning of a message and its length. Gives where the rest of it belongs, or None for a buffer; it has put
# away what it needs of the beginning.
Place = Callable[[memoryview, int], memoryview | None]


# Messages that lie ready in buffers; what comes beyond that is kept as bytes. Every buffer has 20 KB at least.
_MAX_READY = 16
_SPILL_BYTES = 1 << 16  # read at a time


class Unreadable(Exception):
    """A message is compressed, though the call has named no compression; its stream cannot go on."""


class TooLarge(Unreadable):
    """A message is longer than may be."""


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
        if not num_bytes:
            return bytearray()
        size = (1 << max(14, (num_bytes - 1 - _HEADER_ROOM).bit_length())) + _HEADER_ROOM
        with self._lock:
            for i in range(len(self._free) - 1, -1, -1):  # the latest is the one in the cache
                if len(self._free[i]) == size:
                    return self._free.pop(i)
        return bytearray(size)

    def give_back(self, buffer: bytearray) -> None:
        """Nobody uses it any more."""
        if not buffer:
            return
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

    def give_back(self, buffer: bytearray) -> None:
        """A message's buffer is not used any more."""
        self._buffers.give_back(buffer)

    def room(self) -> memoryview:
        """Where the next bytes belong; never empty."""
        return self._room[self._filled :]

    def took(self, count: int) -> tuple[bytearray | None, int] | None:
        """So many bytes have come; returns the message that they complete and its length; no message if it is placed.

        Raises:
            Unreadable: See there.
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
    """Messages of one stream: in buffers while their reader keeps up, and beyond that as the bytes that came.

    Args:
        assembler: Puts them together.
        window: Bytes that the peer may send from the beginning.

    Attributes:
        is_wanted: Whether somebody takes messages. Before that nothing is put together.
        window: Bytes that the peer may still send.
        held: Bytes that have come and that nobody has taken; of those in the message that is being put together only
            what is not in its buffer.
        error: Why no more messages can be put together; None if they can.
    """

    def __init__(self, assembler: Assembler, window: int) -> None:
        self._assembler = assembler
        self._ready: deque[tuple[bytearray | None, int]] = deque()
        self._spilled = bytearray()
        self._spill = memoryview(b"")  # room for what is to be spilled, while it is being read
        self.is_wanted = False
        self.window = window
        self.held = 0
        self.error: Unreadable | None = None

    @property
    def has_next(self) -> bool:
        """Whether a message may be taken, or none can be put together."""
        return bool(self._ready) or self.error is not None

    @property
    def has_first(self) -> bool:
        """Whether the first message has come, or what shows that it cannot; for an inbox that is not wanted yet."""
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
        """Where the next bytes belong, at most so many; `took` must be called before the next."""
        if self.is_wanted and not self._spilled and len(self._ready) < _MAX_READY:
            self._spill = memoryview(b"")
            return self._assembler.room()[:most]
        self._spill = memoryview(bytearray(min(most, _SPILL_BYTES)))
        return self._spill

    def took(self, count: int) -> bool:
        """So many bytes are in the room that was given; whether there is more to take, or an error."""
        if not self._spill:
            return self._put(count)
        self._spilled += self._spill[:count]
        self.held += count
        return self.is_wanted and self._unspill()

    def want(self) -> None:
        """Messages are put together from now on."""
        self.is_wanted = True
        self._unspill()

    def take(self) -> tuple[bytearray | None, int] | None:
        """The next message in a buffer to be given back, and its length; no buffer if it has been placed.

        None if there is no whole one.
        """
        if not self._ready:
            return None
        message = self._ready.popleft()
        self.held -= message[1]
        if self._spilled:
            self._unspill()
        return message

    def clear(self) -> None:
        """Nobody takes anything any more."""
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
        """Puts together what was spilled, as far as there may be messages; whether there is one, or an error."""
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
