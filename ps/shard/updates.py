"""Applies gradients to regions of the vector: those queued for the same elements in one pass (group commit).

Threads: any number may apply gradients; the holder of a region's lock applies all that are queued for the region.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

from downpour.proto.errors import DownpourError
from downpour.proto.numerics import convert
from downpour.ps.apply import kernels
from downpour.ps.apply.regions import Region, Work
from downpour.ps.apply.sources import Piece
from downpour.ps.apply.updater import Updater
from downpour.ps.memory.arena import Arena
from downpour.ps.memory.undo import MAX_WORKERS
from downpour.ps.policy.staleness import Compensate, Treatment
from downpour.ps.shard.books import Books
from downpour.ps.shard.rounds import Rounds
from downpour.ps.testing.points import reach


class Updates:
    """Updates of one shard's regions.

    Args:
        arena: Arena of the shard, marked complete.
        books: The shard's records.
        updater: The shard's updater.
        rounds: The shard's rounds, which receive gradients that are summed.
        treatment: Treatment of stale gradients.
    """

    def __init__(self, arena: Arena, books: Books, updater: Updater, rounds: Rounds, treatment: Treatment) -> None:
        self._arena, self._books, self._updater, self._rounds = arena, books, updater, rounds
        self._treatment = treatment
        self._all = slice(0, len(arena.vectors))  # the vectors that a step of the undo log may change

    def apply(self, region: Region, work: Work) -> None:
        """Queues a gradient; returns when this thread or another holder of the region's lock has applied it.

        Raises:
            DownpourError: The gradient was refused.
        """
        region.waiting.append(work)
        if work.push.member:
            work.push.member.meet(work.stop)
        with region.lock:
            if not work.done:
                self._apply_waiting(region)
        assert work.done, "another thread failed while it applied this gradient"
        if work.error:
            raise work.error

    def _apply_waiting(self, region: Region) -> None:
        """Applies every gradient queued for a region, mostly a single one; the region's lock is held."""
        books, works = self._books, region.take_waiting()
        with books.lock:
            # A push is queued twice if it was retried while its first connection still hangs.
            once = {(w.push.name, w.start): w for w in reversed(works)}.values()
            live = [work for work in reversed(once) if self._is_due(work)]
            if live:
                books.preserve(region)
        if books.is_summed:
            for work in live:
                self._rounds.add(region, work)
        elif live:
            region.num_changes += 1
            for i in range(0, len(live), MAX_WORKERS):
                self._update(region, live[i : i + MAX_WORKERS])
        for work in works:
            work.done = True

    def _is_due(self, work: Work) -> bool:
        """Whether any element of a gradient must be applied; sets the work's `first`, or `error` if it is refused."""
        header, ledger = work.push.header, self._books.ledger
        try:
            done = ledger.applied(header)
        except DownpourError as error:
            work.error = error
            return False
        work.first = max(work.start, done)
        if work.push.dropped and done < work.stop:
            ledger.advance(header, work.stop)
            reach("apply.skipped")
            return False
        return done < work.stop

    def _update(self, region: Region, works: Sequence[Work]) -> None:
        """Updates a region with some gradients; consecutive independent ones of the same elements share one pass."""
        for (first, stop, _), alike in itertools.groupby(works, lambda work: (work.first, work.stop, work.compensated)):
            self._update_run(region, first, stop, list(alike))

    def _update_run(self, region: Region, first: int, stop: int, works: Sequence[Work]) -> None:
        """Updates elements [first, stop) of a region, piece by piece, with gradients that cover all of them."""
        books, pushes = self._books, [work.push for work in works]
        with self._arena.undo.steps(books.lock, self._all) as steps:
            steps.begin(first, [push.header.worker for push in pushes])
            for piece in self._pieces(region, first, stop, works):
                begin, end = max(piece[0], first), min(piece[1], stop)
                if begin < end:
                    gradients = self._gradients(region, works, begin, end)
                    reach("apply.decoded")
                    self._updater.update(begin, gradients, pushes, steps)
            with books.lock:
                for push in pushes:
                    books.ledger.advance(push.header, stop)
                    reach("apply.advanced")
            steps.end()

    def _pieces(self, region: Region, first: int, stop: int, works: Sequence[Work]) -> Sequence[Piece]:
        """The pieces in which [first, stop) is updated: a single one if nothing needs a buffer the size of a piece."""
        if any(work.source.needs_room or work.base is not None for work in works):
            return region.pieces
        return [(first, stop)] if self._updater.saves_nothing_whole(first, stop) else region.pieces

    def _gradients(self, region: Region, works: Sequence[Work], begin: int, end: int) -> list[np.ndarray]:
        """Gradients of elements [begin, end), all in float32 or all in bfloat16."""
        rooms = [region.room(number)[: end - begin] for number in range(len(works))]
        if works[0].base is not None:
            [work], [gradient] = works, rooms
            self._compensate(work, begin, end, gradient)
            return rooms
        gradients = [work.source.gradient((begin, end), room) for work, room in zip(works, rooms, strict=True)]
        if len({gradient.dtype for gradient in gradients}) == 1:
            return gradients
        for work, room in zip(works, rooms, strict=True):
            work.source.decode((begin, end), room)
        return rooms

    def _compensate(self, work: Work, begin: int, end: int, gradient: np.ndarray) -> None:
        """Decodes elements [begin, end) of a gradient into `gradient` and compensates its delay."""
        assert work.base is not None and isinstance(self._treatment, Compensate)
        work.source.decode((begin, end), gradient)
        base = np.empty(end - begin, np.float32)
        convert.to_float32(work.base[begin - work.start : end - work.start], base)
        kernels.compensate(gradient, self._arena.parameters[begin:end], base, self._treatment.strength)
