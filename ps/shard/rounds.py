"""Synchronous rounds: gradients are summed chunk by chunk, and each chunk is updated with the mean of its sum.

Threads: as in `downpour.ps.shard.updates`; every caller holds the lock of the chunk's region.
"""

from __future__ import annotations

import numpy as np

from downpour.proto.errors import MalformedChunk
from downpour.ps.apply import kernels
from downpour.ps.apply.regions import Region, Work
from downpour.ps.apply.updater import Updater
from downpour.ps.memory.arena import Arena
from downpour.ps.shard.books import Books
from downpour.ps.shard.vector import Vector
from downpour.ps.testing.points import reach


class Rounds:
    """Sums of one shard's chunks under the pace `Sync`; under other paces no sum is ever due.

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

    def add(self, region: Region, work: Work) -> None:
        """Adds a gradient to the sum of its round, and updates the region if that completes the sum."""
        header = work.push.header
        if (work.start, work.stop) != (region.start, region.stop):
            work.error = MalformedChunk(
                f"chunk [{work.start}, {work.stop}) is not cut as the pace Sync needs, [{region.start}, {region.stop})"
            )
            return
        books, chunk = self._books, self._vector.regions.index(region)
        with self._arena.undo.steps(books.lock, self._sum) as steps:
            steps.begin(region.start, [header.worker], chunk)
            steps.save(region.start, region.stop)
            with books.lock:
                verdict = books.pace.arrived(chunk, header.base_version)
                reach("sync.arrived")
                if verdict.late:
                    books.ledger.drop(header)
            if not verdict.late:
                self._add_to_sum(region, work, verdict.first)
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
        for start, stop in region.pieces:
            total = self._arena.sum[start:stop]
            if first:
                work.source.decode((start, stop), total)
            else:
                gradient = region.room(0)[: stop - start]
                work.source.decode((start, stop), gradient)
                kernels.add(total, gradient)

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
                version = int(arena.rounds[chunk]["round"])
                count = books.pace.complete(chunk)
                reach("sync.completed")
            for start, stop in region.pieces:
                mean = arena.sum[start:stop]
                mean /= np.float32(count)
                self._updater.update_saved(start, mean, books.rate(version), version + 1)
                reach("sync.updated")
            steps.end()
