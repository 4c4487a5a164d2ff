"""Regions of a shard's vector, each with a lock and a queue of gradients.

A thread with a gradient for a region queues it, then takes the region's lock. Gradients that arrive meanwhile stay in
the queue, and the next holder of the lock applies all of them: piece by piece, and to each piece one gradient after
another. The result is bit for bit that of one gradient after another, since every operation is element-wise, but the
state crosses the memory bus once, not once a gradient.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from downpour.proto import parameter_server_pb2 as pb
from downpour.proto.errors import DownpourError
from downpour.ps.apply.admission import Member
from downpour.ps.apply.sources import Piece, Source
from downpour.ps.layout import Factored
from downpour.ps.layout.chunks import pieces_of_factors, pieces_of_range


@dataclass
class Push:
    """A push that is being received.

    Attributes:
        header: Names the push and its base version.
        learning_rate: The schedule's rate when the push began, lowered as the treatment says.
        step: Number of the push, from 1; pushes that overlap share one.
        repeated: The push had been applied before; nothing of it is applied again.
        dropped: The push is too stale; nothing of it is applied.
        updates: How far workers look ahead; 0 except under `Lookahead`.
        position: First element that has not been received yet.
        member: Its membership in an admission group; None if it is in none.
    """

    header: pb.PushHeader
    learning_rate: float
    step: int
    repeated: bool
    dropped: bool
    updates: float = 0.0
    position: int = 0
    member: Member | None = None

    @property
    def name(self) -> tuple[int, int, int]:
        """The push's key in the ledger: worker, incarnation, sequence."""
        return self.header.worker, self.header.incarnation, self.header.sequence


@dataclass(eq=False)
class Work:
    """One chunk's gradient for one region.

    Attributes:
        push: The push that it belongs to.
        source: Decodes the gradient.
        start: First element of the region that it covers.
        stop: One past the last.
        base: [stop - start] in a wire dtype, the parameters the gradient was computed at, if delays are compensated.
        first: First element that has not been applied before.
        error: Why it was refused, valid once done.
        done: Whether it has been applied, skipped or refused.
    """

    push: Push
    source: Source
    start: int
    stop: int
    base: np.ndarray | None = None
    first: int = 0
    error: DownpourError | None = None
    done: bool = False

    @property
    def compensated(self) -> int:
        """Grouping key: unique if the gradient depends on the current parameters (delay compensation), else 0."""
        return 0 if self.base is None else id(self)


@dataclass(eq=False)
class Region:
    """Elements [start, stop) of a shard's vector.

    Attributes:
        start: First element.
        stop: One past the last.
        pieces: Ranges of its elements that are updated one at a time.
        lock: Held while its elements change or are read.
        waiting: Queue of gradients that have not been applied; any thread may append.
        num_changes: How often its elements have been changed; guarded by the lock.
    """

    start: int
    stop: int
    pieces: Sequence[Piece]
    lock: threading.Lock = field(default_factory=threading.Lock)
    waiting: deque[Work] = field(default_factory=deque)
    num_changes: int = 0

    def __post_init__(self) -> None:
        self._rooms = list[np.ndarray]()

    def room(self, number: int) -> np.ndarray:
        """Scratch buffer for a piece of the `number`-th gradient of a pass, float32; used with the lock held."""
        while len(self._rooms) <= number:
            self._rooms.append(np.empty(max(stop - start for start, stop in self.pieces), np.float32))
        return self._rooms[number]

    def take_waiting(self) -> list[Work]:
        """Removes and returns all queued gradients, in the order of arrival."""
        works = []
        while self.waiting:
            works.append(self.waiting.popleft())
        return works


def regions_of(chunks: Sequence[Piece], groups: Sequence[Factored], uncut: Sequence[Piece] = ()) -> list[Region]:
    """One region for each chunk of a push.

    Args:
        chunks: (start, stop) of each chunk.
        groups: The shard's factored variables.
        uncut: Ranges that are updated in one piece.
    """
    pieces = {
        group.start: pieces_of_factors([(r.offset, r.offset + r.size) for r in group.ranges], group.num_inputs, uncut)
        for group in groups
    }
    return [Region(start, stop, pieces.get(start, pieces_of_range(start, stop, uncut))) for start, stop in chunks]
