"""Receives pushes from header to reply: chunks in order, and every push counted exactly once.

Threads: any number may push, each with a push of its own.
"""

from __future__ import annotations

from downpour.proto import codec
from downpour.proto import parameter_server_pb2 as pb
from downpour.proto.errors import MalformedChunk, NonFinite
from downpour.ps.apply.admission import Member
from downpour.ps.apply.regions import Push, Work
from downpour.ps.apply.sources import Source, source_of
from downpour.ps.memory.arena import Arena
from downpour.ps.memory.ledger import PushState
from downpour.ps.policy import staleness
from downpour.ps.policy.staleness import Compensate, Treatment
from downpour.ps.shard.books import Books
from downpour.ps.shard.updates import Updates
from downpour.ps.shard.vector import Vector
from downpour.ps.testing.points import reach


class Pushes:
    """The pushes of one shard.

    Args:
        arena: Arena of the shard, marked complete.
        vector: The shard's vector.
        books: The shard's records.
        updates: The shard's updates.
        treatment: Treatment of stale gradients.
    """

    def __init__(self, arena: Arena, vector: Vector, books: Books, updates: Updates, treatment: Treatment) -> None:
        self._arena, self._vector, self._books, self._updates = arena, vector, books, updates
        self._treatment = treatment

    def begin(self, header: pb.PushHeader, member: Member | None) -> Push:
        """See `Shard.begin`."""
        books, arena = self._books, self._arena
        with books.lock:
            state = books.ledger.state(header)
            if state is PushState.COMPLETE:
                arena.counters["repeated"] += 1
            version = self._vector.version
            stale = max(0, version - header.base_version)
            if state is PushState.NEW:
                with arena.undo.bookkeeping(header.worker):
                    books.ledger.begin(header)
                    reach("ledger.begun")
                    if staleness.drops(self._treatment, stale):
                        books.ledger.drop(header)
                        reach("ledger.dropped")
            rate = books.rate(version) * staleness.rate_factor(self._treatment, stale, version)
            dropped = not books.is_sync and books.ledger.is_dropped(header)
            push = Push(header, rate, version + 1, state is PushState.COMPLETE, dropped, books.updates_ahead)
        if member:
            member.worker = header.worker
            if push.repeated or dropped:
                member.leave()
            else:
                push.member = member
        return push

    def apply(self, push: Push, chunk: codec.Chunk) -> None:
        """See `Shard.apply`."""
        vector, stop = self._vector, chunk.start + chunk.count
        groups = vector.groups
        largest = groups[chunk.start].size if chunk.rows and chunk.start in groups else codec.CHUNK_ELEMENTS
        if chunk.start != push.position or stop > vector.num_pushed or not 0 < chunk.count <= largest:
            raise MalformedChunk(
                f"chunk [{chunk.start}, {stop}) where one at {push.position} was expected, "
                f"of at most {codec.CHUNK_ELEMENTS} elements and within {vector.num_pushed}"
            )
        source = source_of(chunk, groups, vector.uncut)
        base = chunk.base_values() if self._needs_base(chunk) else None
        push.position = stop
        if push.repeated:
            return
        self._refuse_non_finite(push, source)
        start = chunk.start
        while start < stop:
            region = vector.region_at(start)
            end = min(stop, region.stop)
            of_base = None if base is None else base[start - chunk.start : end - chunk.start]
            self._updates.apply(region, Work(push, source, start, end, of_base))
            start = end

    def finish(self, push: Push) -> pb.PushReply:
        """See `Shard.finish`."""
        if push.position != self._vector.num_pushed:
            raise MalformedChunk(f"the push ended after {push.position} of {self._vector.num_pushed} elements")
        books = self._books
        with books.lock:
            if not push.repeated and not books.ledger.is_complete(push.header):
                books.ledger.applied(push.header)
                with self._arena.undo.bookkeeping(push.header.worker):
                    books.complete(push, self._vector.version)
                books.moved.notify_all()
                return self._reply(push, repeated=False)
            return self._reply(push, repeated=True)

    def _needs_base(self, chunk: codec.Chunk) -> bool:
        if not isinstance(self._treatment, Compensate) or chunk.start >= self._vector.num_trained:
            return False
        if chunk.runs is not None:
            raise MalformedChunk(
                f"the gradient of {self._name_of(chunk.start)} is sparse; the treatment Compensate needs every element"
            )
        return True

    def _refuse_non_finite(self, push: Push, source: Source) -> None:
        count = source.num_non_finite()
        if not count:
            return
        with self._books.lock:
            self._arena.counters["refused"] += 1
        raise NonFinite(
            f"push {push.header.sequence} of worker {push.header.worker} has {count} "
            f"numbers that are not finite, the first in {self._name_of(source.first_non_finite())}"
        )

    def _reply(self, push: Push, *, repeated: bool) -> pb.PushReply:
        ledger = self._books.ledger
        return pb.PushReply(
            version=self._vector.version,
            staleness=ledger.staleness(push.header),
            repeated=repeated,
            dropped=ledger.is_dropped(push.header),
        )

    def _name_of(self, element: int) -> str:
        layout = self._arena.layout
        ranges = layout.by_shard[self._arena.specification.shard]
        return next(layout.variables[r.variable].name for r in ranges if r.offset <= element < r.offset + r.size)
