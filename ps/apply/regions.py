"""The parts of a shard's vector that are locked together, and the gradients that wait for each.

Whoever brings a gradient for a region queues it and takes the region's lock; gradients that arrive meanwhile wait in
the queue, and whoever gets the lock next applies all of them: piece after piece, and on each piece gradient after
gradient. That gives the same bits as one gradient after another, since every operation is element by element, but the
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
from downpour.ps.apply.sources import Piece, Source, pieces_of_factors, pieces_of_range
from downpour.ps.layout import Factored


@dataclass
class Push:
    """A push while it arrives.

    Attributes:
        header: Its name.
        learning_rate: The schedule's when it began, divided by the staleness if the job says so.
        step: Its number, from 1; pushes that overlap share one.
        repeated: It had been applied before; nothing of it is applied again.
        dropped: It is too stale; nothing of it is applied.
        position: First element that has not arrived yet.
        member: Of the pushes that it goes together with; None where it goes alone.
    """

    header: pb.PushHeader
    learning_rate: float
    step: int
    repeated: bool
    dropped: bool
    position: int = 0
    member: Member | None = None

    @property
    def name(self) -> tuple[int, int, int]:
        """What the ledger knows it by: worker, incarnation, sequence."""
        return self.header.worker, self.header.incarnation, self.header.sequence


@dataclass(eq=False)
class Work:
    """One chunk's gradient for one region.

    Attributes:
        push: What it is of.
        source: Gives the gradient.
        start: First element of the region that it has.
        stop: One past the last.
        base: [stop - start] in a wire dtype, what the gradient was computed from, if delays are compensated.
        first: First element that has not been applied before.
        error: Why it was not applied, once done.
        done: Whether it has been dealt with.
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
        """Differs from that of every other gradient if it depends on what the parameters are then; else 0."""
        return 0 if self.base is None else id(self)


@dataclass(eq=False)
class Region:
    """Elements [start, stop) of a shard's vector.

    Attributes:
        start: First element.
        stop: One past the last.
        pieces: What is updated at a time.
        lock: Held while its elements change or are read.
        waiting: Gradients that nobody has applied yet; anybody may append.
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
        """Room for a piece of one of the gradients that are applied together, float32; used with the lock held."""
        while len(self._rooms) <= number:
            self._rooms.append(np.empty(max(stop - start for start, stop in self.pieces), np.float32))
        return self._rooms[number]

    def take_waiting(self) -> list[Work]:
        """Everything that waits, in the order of arrival."""
        works = []
        while self.waiting:
            works.append(self.waiting.popleft())
        return works


def regions_of(chunks: Sequence[Piece], groups: Sequence[Factored], uncut: Sequence[Piece] = ()) -> list[Region]:
    """One region for each chunk of a push.

    Args:
        chunks: Elements of each.
        groups: The shard's factored variables.
        uncut: Elements that are updated in one piece.
    """
    pieces = {group.start: pieces_of_factors(group, uncut) for group in groups}
    return [Region(start, stop, pieces.get(start, pieces_of_range(start, stop, uncut))) for start, stop in chunks]
