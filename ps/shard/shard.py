"""A shard's numbers: pulls, pushes and counters over an arena. No gRPC, no TensorFlow.

A push is applied chunk by chunk as it arrives; when its last element has been applied, the version advances by one.
Pulls and pushes of several workers interleave chunk by chunk (Hogwild within a push, atomic within a chunk). Under the
pace `Sync` gradients are summed instead, chunk by chunk, and the version advances when every chunk has been updated
with the mean of its sum; where several pushes make one update they are summed, too, but each advances the version. Each
piece of an update, and each push that begins or is counted, is one change of the arena's
undo log, so that a process that dies leaves none of them half-done.

`vector` is read by pulls, `pushes` receives gradients in order, `updates` applies them to regions, `rounds` sums them
under `Sync`, `books` holds ledger, counters and pace.

Threads: any number may call. Each region's lock guards its part of the vectors (`downpour.ps.apply.regions`); the lock
of the books guards ledger, counters, pace and snapshots, and is never held while numbers are computed. A region's lock
is taken first.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

from downpour.proto import codec
from downpour.proto import parameter_server_pb2 as pb
from downpour.proto.errors import NotYet
from downpour.ps.apply.admission import Member
from downpour.ps.apply.regions import Push
from downpour.ps.apply.updater import Updater
from downpour.ps.memory.arena import Arena
from downpour.ps.memory.snapshot import Snapshot
from downpour.ps.policy.pace import Async
from downpour.ps.policy.specification import policies_of
from downpour.ps.policy.staleness import Lookahead
from downpour.ps.shard.ahead import Ahead
from downpour.ps.shard.books import Books
from downpour.ps.shard.publication import Publisher
from downpour.ps.shard.pushes import Pushes
from downpour.ps.shard.rounds import Rounds
from downpour.ps.shard.updates import Updates
from downpour.ps.shard.vector import Vector

# Seconds an element that a push may wait for others: some thirty times what applying it takes, since a push waits only
# where processors are short and have other work meanwhile.
_PATIENCE_S = 4e-8
_LONGEST_PATIENCE_S = 1.0
_LEAST_GROUPED = 1 << 17  # elements; fewer stay in the cache, so that one pass for two pushes gains nothing


class Shard:
    """One shard of the parameters, ready to serve.

    Args:
        arena: Arena of the shard, with its values.

    Raises:
        ValueError: The arena's specification is of policies that this version does not have.

    Attributes:
        arena: As given.
        vector: The vector that pulls read.
        publishers: Publishers that serve pulls as differences, by codec. A publisher's first pull makes its first
            publication, so a codec that is never requested costs nothing.
    """

    def __init__(self, arena: Arena) -> None:
        self.arena = arena
        policies = policies_of(arena.specification)
        self._books, updater = Books(arena, policies), Updater(arena, policies)
        treatment = policies.treatment
        ahead = Ahead(arena, self._books, policies.rule, treatment) if isinstance(treatment, Lookahead) else None
        self.vector = Vector(arena, ahead)
        self.publishers = {wire: Publisher(self.vector, wire) for wire in (codec.INT8, codec.INT4)}
        self._rounds = Rounds(arena, self.vector, self._books, updater)
        updates = Updates(arena, self._books, updater, self._rounds, treatment)
        self._pushes = Pushes(arena, self.vector, self._books, updates, treatment)
        self._rounds.complete()  # sums that a killed process left due

    @property
    def version(self) -> int:
        """Number of updates applied."""
        return self.vector.version

    @property
    def patience_s(self) -> float:
        """Seconds that a push may be delayed to be applied in one pass with others; 0 for sums and if small."""
        num_pushed = self.vector.num_pushed
        if self._books.is_summed or num_pushed < _LEAST_GROUPED:
            return 0.0
        return min(_LONGEST_PATIENCE_S, _PATIENCE_S * num_pushed)

    def wait_turn(self, request: pb.PullRequest, wait_s: float) -> None:
        """Blocks until the pace permits the worker's pull.

        Raises:
            NotYet: The pace has not permitted it within `wait_s` seconds.
        """
        books = self._books
        if isinstance(books.pace.mode, Async):
            return
        worker = request.worker, request.incarnation, request.num_pushes
        with books.lock:
            if not books.moved.wait_for(lambda: books.pace.may_pull(*worker, self.version), wait_s):
                raise NotYet(f"worker {request.worker} must wait for others before its step {request.num_pushes}")

    def absent(self, gone: Sequence[tuple[int, int]]) -> None:
        """Removes workers (index, incarnation) from the pace, so that no pull and no round waits for them."""
        books = self._books
        with self.vector.all_unchanged():
            with books.lock:
                books.pace.absent(gone)
            self._rounds.complete()
            with books.lock:
                books.moved.notify_all()

    def set_rate(self, number: int, factor: float) -> pb.Rate:
        """Changes the factor of the learning rate; see `Books.set_rate`."""
        return self._books.set_rate(number, factor)

    def begin(self, header: pb.PushHeader, member: Member | None = None) -> Push:
        """Opens a push; the present version decides its rate, its number and whether it is too stale.

        Args:
            header: Names the push and its base version.
            member: The call's membership in an admission group.

        Raises:
            WorkerSuperseded: See `Ledger.known`.
            TooManyWorkers: See `Ledger.known`.
        """
        return self._pushes.begin(header, member)

    def apply(self, push: Push, chunk: codec.Chunk) -> None:
        """Applies the next chunk of a push, or the part of it that has not been applied before.

        Raises:
            MalformedChunk: The chunk does not hold the next elements of the vector, or is unreadable.
            NonFinite: The chunk has NaN or infinity; nothing of it is applied.
            WorkerSuperseded: The worker has begun a later push.
        """
        self._pushes.apply(push, chunk)

    def finish(self, push: Push) -> pb.PushReply:
        """Counts a push whose last chunk has been applied.

        Raises:
            MalformedChunk: Elements are missing.
            WorkerSuperseded: The worker has begun a later push.
        """
        return self._pushes.finish(push)

    def status(self, *, since_start: bool = False) -> pb.StatusReply:
        """Counters, as in the reply of `Status`, or those of this process; without the layout."""
        return self._books.status(since_start=since_start)

    @contextlib.contextmanager
    def snapshot(self) -> Iterator[Snapshot]:
        """A consistent snapshot of vectors, counters, ledger and rounds, open while the block lasts."""
        arena, books = self.arena, self._books
        with self.vector.all_unchanged(), books.lock:
            snapshot = Snapshot(arena.vectors, arena.records, books.lock)
            books.snapshots.append(snapshot)
        try:
            yield snapshot
        finally:
            with books.lock:
                books.snapshots.remove(snapshot)

    def close(self) -> None:
        """Closes the arena when no update is in progress; pushes that continue are refused."""
        with self.vector.all_unchanged(), self._books.lock:
            self.arena.undo.closed = True
            self.arena.close()
