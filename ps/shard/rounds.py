"""Rounds: gradients are summed chunk by chunk, and each chunk is updated with the mean of its sum.

Under the pace `Sync` a round has one gradient of each worker, of the round before. Where several pushes make one update
(`downpour.ps.policy.staleness.Lookahead`), it has the next so many, whoever pushes them; what they add to statistics
is added at once.

Threads: as in `downpour.ps.shard.updates`; every caller holds the lock of the chunk's region.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from downpour.proto.errors import MalformedChunk
from downpour.ps.apply import kernels
from downpour.ps.apply.regions import Region, Work
from downpour.ps.apply.sources import Piece
from downpour.ps.apply.updater import Updater
from downpour.ps.memory.arena import Arena
from downpour.ps.shard.books import Books
from downpour.ps.shard.vector import Vector
from downpour.ps.testing.points import reach


class Rounds:
    """Sums of one shard's chunks; where each gradient is an update, no sum is ever due.

    Args:
        arena: Arena of the shard, marked complete.
        vector: The shard's vector.
        books: The shard's records.
        updater: The shard's updater.
    """

    def __init__(self, arena: Arena, vector: Vector, books: Books, updater: Updater) -> None:
        self._arena, self._vector, self._books, self._updater = arena, vector, books, updater
        # The vectors that a step of the undo log may change; the sum is the last, if there is one.
        num_vectors = len(arena.vectors)
        self._all, self._sum = slice(0, num_vectors), slice(num_vectors - 1, num_vectors)
        # Elements that are summed; statistics come behind the trained ones.
        self._num_summed = vector.num_pushed if books.is_sync else vector.num_trained

    def add(self, region: Region, work: Work) -> None:
        """Adds a gradient to the sum of its round, and updates the region if that completes the sum."""
        header = work.push.header
        if (work.start, work.stop) != (region.start, region.stop):
            work.error = MalformedChunk(
                f"chunk [{work.start}, {work.stop}) is not cut as sums need it, [{region.start}, {region.stop})"
            )
            return
        books, chunk = self._books, self._vector.regions.index(region)
        adds = region.stop > self._num_summed
        region.num_changes += adds
        with self._arena.undo.steps(books.lock, self._all if adds else self._sum) as steps:
            steps.begin(region.start, [header.worker], chunk)
            steps.save(region.start, region.stop)
            with books.lock:
                verdict = books.pace.arrived(chunk, header.base_version)
                reach("sync.arrived")
                if verdict.late:
                    books.ledger.drop(header)
            if not verdict.late:
                self._add_to_sum(region, work, verdict.first)
                if adds:
                    self._add_statistics(region, work, int(self._arena.rounds[chunk]["round"]) + 1)
            reach("sync.summed")
            with books.lock:
                books.ledger.advance(header, work.stop)
            steps.end()
        self.complete(chunk)

    def complete(self, only: int | None = None) -> None:
        """Updates the chunks whose sum is complete, all of them or `only` one; their regions' locks are held."""
        books = self._books
        with books.lock:
            due = [chunk for chunk in books.pace.due() if only is None or chunk == only]
        for chunk in due:
            self._update_with_mean(chunk)
        if books.is_sync:
            with books.lock:
                self._arena.counters["version"] = books.pace.rounds()
                reach("sync.version")
                books.moved.notify_all()

    def _add_to_sum(self, region: Region, work: Work, first: bool) -> None:
        for start, stop in self._summed(region):
            total = self._arena.sum[start:stop]
            if first:
                work.source.decode((start, stop), total)
            else:
                gradient = region.room(0)[: stop - start]
                work.source.decode((start, stop), gradient)
                kernels.add(total, gradient)

    def _add_statistics(self, region: Region, work: Work, number: int) -> None:
        """Adds differences to statistics, which have no part in the sum, before update `number`."""
        for start, stop in region.pieces:
            begin = max(start, self._num_summed)
            if begin < stop:
                difference = region.room(0)[: stop - begin]
                work.source.decode((begin, stop), difference)
                self._updater.update_saved(begin, difference, 0.0, number)

    def _summed(self, region: Region) -> Iterator[Piece]:
        """The pieces of a region, without statistics that are added at once."""
        for start, stop in region.pieces:
            if start < self._num_summed:
                yield start, min(stop, self._num_summed)

    def _update_with_mean(self, chunk: int) -> None:
        """Updates the region of a chunk with the mean of its sum."""
        arena, books, region = self._arena, self._books, self._vector.regions[chunk]
        region.num_changes += 1
        with books.lock:
            books.preserve(region)
        with arena.undo.steps(books.lock, self._all) as steps:
            steps.begin(region.start, [], chunk)
            steps.save(region.start, region.stop)
            with books.lock:
                number = int(arena.rounds[chunk]["round"])
                count = books.pace.complete(chunk)
                learning_rate, updates = books.rate_of_mean(number), books.updates_ahead
                reach("sync.completed")
            for start, stop in self._summed(region):
                mean = arena.sum[start:stop]
                mean /= np.float32(count)
                self._updater.update_saved(start, mean, learning_rate, number + 1, updates)
                reach("sync.updated")
            steps.end()
