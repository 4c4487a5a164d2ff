"""A shard's numbers: pulls, pushes and counters over an arena. No gRPC, no TensorFlow.

A push is applied chunk by chunk as it arrives; it advances the version when its last element has been applied, by one.
Pulls and pushes of several workers interleave chunk by chunk (Hogwild within a push, atomic within a chunk). Under the
pace `Sync` gradients are summed instead, chunk by chunk, and the version advances when every chunk has been updated
with the mean of its sum. Each piece of an update, and each push that begins or is counted, is one change of the arena's
undo log, so that a process that dies leaves none of them half-done.

Threads: any number may call. Each region's lock guards its part of the vectors (`downpour.ps.apply.regions`); `_lock`
guards ledger, counters, pace and snapshots, and is never held while numbers are crunched. A region's lock comes first.
"""

from __future__ import annotations

import bisect
import contextlib
import itertools
import threading
from collections.abc import Iterator, Sequence

import numpy as np

from downpour.proto import codec
from downpour.proto import parameter_server_pb2 as pb
from downpour.proto.errors import DownpourError, MalformedChunk, NonFinite, NotYet
from downpour.ps.apply import kernels
from downpour.ps.apply.admission import Member
from downpour.ps.apply.regions import Push, Region, Work, regions_of
from downpour.ps.apply.sources import Piece, source_of
from downpour.ps.apply.updater import Updater
from downpour.ps.memory.arena import Arena
from downpour.ps.memory.ledger import COUNTERS, STALENESS_BUCKETS, Known, Ledger
from downpour.ps.memory.snapshot import Snapshot
from downpour.ps.memory.undo import MAX_WORKERS
from downpour.ps.policy import pace, schedules, staleness
from downpour.ps.policy.named import from_message
from downpour.ps.policy.pace import Async, Pace, Sync
from downpour.ps.policy.staleness import Compensate, Keep, Treatment
from downpour.ps.shard.encodings import Encodings
from downpour.ps.shard.publication import Publisher
from downpour.ps.testing.points import reach

# How long a push may wait for others, an element: some thirty times what applying it takes, since it waits only where
# processors are short and have other work meanwhile.
_PATIENCE_S = 4e-8
_LONGEST_PATIENCE_S = 1.0
_VERSION = COUNTERS.fields["version"][1] // 8  # type: ignore[index]  # in words


class Shard:
    """One shard of the parameters, ready to serve.

    Args:
        arena: Complete memory of the shard.

    Attributes:
        arena: As given.
        publishers: What serves pulls as differences, by the codec of those. The first pull makes the first publication,
            so a codec that nobody asks for costs nothing.
    """

    def __init__(self, arena: Arena) -> None:
        specification = arena.specification
        layout, index = arena.layout, specification.shard
        self.arena = arena
        self.publishers = {wire: Publisher(self, wire) for wire in (codec.INT8, codec.INT4)}
        self.size = arena.parameters.size
        self.num_trained = layout.num_trained(index)
        self.num_pushed = layout.num_pushed(index)
        self._groups = {group.start: group for group in layout.factored(index)}
        self._uncut = layout.uncut(index)
        self._regions = regions_of(arena.chunks, list(self._groups.values()), self._uncut)
        self._region_stops = [region.stop for region in self._regions]
        self._encodings = Encodings()
        self._updater = Updater(arena)
        self._schedule: schedules.Schedule = from_message(schedules.BY_NAME, specification.schedule)
        self._staleness: Treatment = Keep()
        if specification.HasField("staleness"):
            self._staleness = from_message(staleness.BY_NAME, specification.staleness)
        mode = from_message(pace.BY_NAME, specification.pace) if specification.HasField("pace") else Async()
        self._pace = Pace(mode, specification.num_workers, arena.rounds)
        self._is_sync = isinstance(self._pace.mode, Sync)
        self._ledger = Ledger(arena.ledger)
        self._counters = arena.counters_record.view("<u8").data  # as integers
        # The vectors that a step of the undo log may change; the sum is the last, if there is one.
        num_vectors = len(arena.vectors)
        self._all, self._sum = slice(0, num_vectors), slice(num_vectors - 1, num_vectors)
        self._lock = threading.Lock()
        self._moved = threading.Condition(self._lock)  # a push is complete, or a worker is gone
        self._snapshots: list[Snapshot] = []  # being read
        self._complete_rounds()  # that the death of a process has left due

    @property
    def version(self) -> int:
        """Updates applied. Read without the lock: one aligned 8-byte word."""
        return self._counters[_VERSION]

    def cut(self, start: int, stop: int) -> Iterator[tuple[int, int]]:
        """[start, stop) in chunks for `read`: none crosses the border of a region."""
        for region_start, region_stop in (*self.arena.chunks, (self.num_pushed, self.size)):
            yield from codec.split(max(start, region_start), min(stop, region_stop))

    def read(self, start: int, stop: int, out: np.ndarray) -> None:
        """Writes elements [start, stop), one of those that `cut` gives, into `out` of a wire dtype."""
        with self.unchanged(start):
            kernels.to_wire(self.arena.parameters[start:stop], out)

    def encoded(self, start: int, stop: int, wire: int) -> np.ndarray:
        """The same in a wire dtype of its own. Pulls between which no push has come share it: to be read only."""
        with self.unchanged(start):
            moment = self._region_at(start).num_changes if start < self.num_pushed else 0
            values = self._encodings.get((start, stop, wire), moment)
            if values is None:
                values = np.empty(stop - start, codec.WIRE_DTYPES[wire])
                kernels.to_wire(self.arena.parameters[start:stop], values)
                self._encodings.keep((start, stop, wire), moment, values)
            return values

    def unchanged(self, start: int) -> contextlib.AbstractContextManager[object]:
        """No push changes the chunk of `cut` at `start` while the block lasts."""
        return self._region_at(start).lock if start < self.num_pushed else contextlib.nullcontext()

    def wait_turn(self, request: pb.PullRequest, wait_s: float) -> None:
        """Returns once the pace lets the worker pull.

        Raises:
            NotYet: It has not within `wait_s` seconds.
        """
        if isinstance(self._pace.mode, Async):
            return
        worker = request.worker, request.incarnation, request.num_pushes
        with self._lock:
            if not self._moved.wait_for(lambda: self._pace.may_pull(*worker, self.version), wait_s):
                raise NotYet(f"worker {request.worker} must wait for others before its step {request.num_pushes}")

    def absent(self, gone: Sequence[tuple[int, int]]) -> None:
        """Nobody waits any longer for these workers (index, incarnation)."""
        with self._all_regions():
            with self._lock:
                self._pace.absent(gone)
            self._complete_rounds()
            with self._lock:
                self._moved.notify_all()

    @property
    def patience_s(self) -> float:
        """How long a push may wait for others to be applied together with; where rounds are summed up it need not."""
        return 0.0 if self._is_sync else min(_LONGEST_PATIENCE_S, _PATIENCE_S * self.num_pushed)

    def begin(self, header: pb.PushHeader, member: Member | None = None) -> Push:
        """Opens a push; its rate, its number and its staleness are those of this moment.

        Args:
            header: Its name.
            member: Of the pushes that it goes together with.

        Raises:
            WorkerSuperseded: See `Ledger.known`.
            TooManyWorkers: See `Ledger.known`.
        """
        with self._lock:
            known = self._ledger.known(header)
            if known is Known.COMPLETE:
                self.arena.counters["repeated"] += 1
            stale = max(0, self.version - header.base_version)
            if known is Known.NEW:
                with self.arena.undo.bookkeeping(header.worker):
                    self._ledger.begin(header)
                    reach("ledger.begun")
                    if staleness.drops(self._staleness, stale):
                        self._ledger.drop(header)
                        reach("ledger.dropped")
            rate = self._schedule.rate(self.version) * staleness.rate_factor(self._staleness, stale)
            dropped = not self._is_sync and self._ledger.is_dropped(header)
            push = Push(header, rate, self.version + 1, known is Known.COMPLETE, dropped)
        if member:
            member.worker = header.worker
            if push.repeated or dropped:
                member.leave()
            else:
                push.member = member
        return push

    def apply(self, push: Push, chunk: codec.Chunk) -> None:
        """Applies the next chunk of a push, or the part of it that has not been applied before.

        Raises:
            MalformedChunk: Not the next elements of the vector, or not readable.
            NonFinite: It has NaN or infinity; nothing of the chunk is applied.
            WorkerSuperseded: The worker has begun a later push.
        """
        stop = chunk.start + chunk.count
        largest = self._groups[chunk.start].size if chunk.rows and chunk.start in self._groups else codec.CHUNK_ELEMENTS
        if chunk.start != push.position or stop > self.num_pushed or not 0 < chunk.count <= largest:
            raise MalformedChunk(
                f"chunk [{chunk.start}, {stop}) where one at {push.position} was due, "
                f"of at most {codec.CHUNK_ELEMENTS} elements and within {self.num_pushed}"
            )
        source = source_of(chunk, self._groups, self._uncut)
        base = chunk.base_values() if self._needs_base(chunk) else None
        push.position = stop
        if push.repeated:
            return
        self._refuse_non_finite(push, chunk, source.num_non_finite())
        start = chunk.start
        while start < stop:
            region = self._region_at(start)
            end = min(stop, region.stop)
            of_base = None if base is None else base[start - chunk.start : end - chunk.start]
            self._apply_work(region, Work(push, source, start, end, of_base))
            start = end

    def finish(self, push: Push) -> pb.PushReply:
        """Counts a push whose last chunk has been applied.

        Raises:
            MalformedChunk: Elements are missing.
            WorkerSuperseded: The worker has begun a later push.
        """
        if push.position != self.num_pushed:
            raise MalformedChunk(f"the push ended after {push.position} of {self.num_pushed} elements")
        with self._lock:
            if not push.repeated and not self._ledger.is_complete(push.header):
                self._ledger.applied(push.header)
                with self.arena.undo.bookkeeping(push.header.worker):
                    self._complete(push)
                self._moved.notify_all()
                return self._reply(push, repeated=False)
            return self._reply(push, repeated=True)

    def status(self) -> pb.StatusReply:
        """Counters, as `Status` answers them; without the layout."""
        with self._lock:
            counters = self.arena.counters
            return pb.StatusReply(
                ready=True,
                shard=self.arena.specification.shard,
                fingerprint=self.arena.specification.fingerprint,
                version=int(counters["version"]),
                pushes_refused=int(counters["refused"]),
                pushes_repeated=int(counters["repeated"]),
                pushes=int(counters["pushes"]),
                pushes_dropped=int(counters["dropped"]),
                staleness_histogram=counters["staleness"].tolist(),
                state_bytes=self.arena.num_bytes,
                job_id=self.arena.specification.job_id,
                incarnation=int(self.arena.ledger["incarnation"].max()),
            )

    @contextlib.contextmanager
    def snapshot(self) -> Iterator[Snapshot]:
        """Vectors, counters, ledger and rounds, all of one moment, for as long as the block lasts."""
        with self._all_regions(), self._lock:
            arena = self.arena
            records = {"counters": arena.counters_record, "ledger": arena.ledger, "rounds": arena.rounds}
            snapshot = Snapshot(arena.vectors, records, self._lock)
            self._snapshots.append(snapshot)
        try:
            yield snapshot
        finally:
            with self._lock:
                self._snapshots.remove(snapshot)

    def close(self) -> None:
        """Closes the arena once nothing is being applied; pushes that go on are refused."""
        with self._all_regions(), self._lock:
            self.arena.undo.closed = True
            self.arena.close()

    def _needs_base(self, chunk: codec.Chunk) -> bool:
        return isinstance(self._staleness, Compensate) and chunk.start < self.num_trained

    def _refuse_non_finite(self, push: Push, chunk: codec.Chunk, count: int) -> None:
        if not count:
            return
        with self._lock:
            self.arena.counters["refused"] += 1
        where = chunk.start
        if not chunk.rows and chunk.codec != codec.INT8:
            values = np.empty(chunk.count, np.float32)
            kernels.to_float32(chunk.values(), values)
            where += int(np.flatnonzero(~np.isfinite(values))[0])
        raise NonFinite(
            f"push {push.header.sequence} of worker {push.header.worker} has {count} "
            f"numbers that are not finite, the first in {self._name_of(where)}"
        )

    def _region_at(self, element: int) -> Region:
        return self._regions[bisect.bisect_right(self._region_stops, element)]

    @contextlib.contextmanager
    def _all_regions(self) -> Iterator[None]:
        """No number changes while the block lasts."""
        with contextlib.ExitStack() as locks:
            for region in self._regions:
                locks.enter_context(region.lock)
            yield

    def _apply_work(self, region: Region, work: Work) -> None:
        """Has a gradient applied, by this thread or by one that holds the region's lock already."""
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
        """Applies every gradient that waits for a region, whose lock is held; most of the time that is one."""
        works = region.take_waiting()
        with self._lock:
            # One push may wait twice, when it was sent again while its first connection still hangs.
            once = {(w.push.name, w.start): w for w in reversed(works)}.values()
            live = [work for work in reversed(once) if self._is_due(work)]
            for snapshot in self._snapshots if live and not self._is_sync else ():
                snapshot.preserve(region.start, region.stop)
        if self._is_sync:
            for work in live:
                self._sum_up(region, work)
        elif live:
            region.num_changes += 1
            for i in range(0, len(live), MAX_WORKERS):
                self._update(region, live[i : i + MAX_WORKERS])
        for work in works:
            work.done = True

    def _is_due(self, work: Work) -> bool:
        """Whether anything of a gradient must be applied; says in the work from where on, or why it must not."""
        header = work.push.header
        try:
            done = self._ledger.applied(header)
        except DownpourError as error:
            work.error = error
            return False
        work.first = max(work.start, done)
        if work.push.dropped and done < work.stop:
            self._ledger.advance(header, work.stop)
            reach("apply.skipped")
            return False
        return done < work.stop

    def _update(self, region: Region, works: Sequence[Work]) -> None:
        """Updates a region with some gradients; with those of the same elements at a time, if they are independent."""
        for (first, stop, _), alike in itertools.groupby(works, lambda work: (work.first, work.stop, work.compensated)):
            self._update_run(region, first, stop, list(alike))

    def _update_run(self, region: Region, first: int, stop: int, works: Sequence[Work]) -> None:
        """Updates elements [first, stop) of a region with gradients that have all of them, piece by piece."""
        pushes = [work.push for work in works]
        with self.arena.undo.steps(self._lock, self._all) as steps:
            steps.begin(first, [push.header.worker for push in pushes])
            for piece in self._pieces(region, first, stop, works):
                begin, end = max(piece[0], first), min(piece[1], stop)
                if begin < end:
                    gradients = self._gradients(region, works, begin, end)
                    reach("apply.decoded")
                    self._updater.update(begin, gradients, pushes, steps)
            with self._lock:
                for push in pushes:
                    self._ledger.advance(push.header, stop)
                    reach("apply.advanced")
            steps.end()

    def _pieces(self, region: Region, first: int, stop: int, works: Sequence[Work]) -> Sequence[Piece]:
        """What of [first, stop) is updated at a time: all of it, if nothing of it needs room for a piece."""
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
        """Decodes elements [begin, end) of a gradient whose delay is compensated."""
        assert work.base is not None and isinstance(self._staleness, Compensate)
        work.source.decode((begin, end), gradient)
        base = np.empty(end - begin, np.float32)
        kernels.to_float32(work.base[begin - work.start : end - work.start], base)
        kernels.compensate(gradient, self.arena.parameters[begin:end], base, self._staleness.strength)

    def _complete(self, push: Push) -> None:
        """Counts a push, all of which has been applied, summed or dropped."""
        header, counters = push.header, self.arena.counters
        # A shard that came back from a checkpoint may be behind what a worker has pulled before.
        stale = max(0, self.version - header.base_version)
        counters["staleness"][min(stale, STALENESS_BUCKETS - 1)] += 1
        counters["pushes"] += 1
        reach("complete.counted")
        counters["dropped"] += self._ledger.is_dropped(header)
        if not self._is_sync and not push.dropped:
            counters["version"] += 1
            reach("complete.version")
        self._ledger.complete(header, stale)
        reach("complete.ledger")
        self._pace.pushed(header.worker, header.incarnation, header.sequence, header.base_version)

    def _reply(self, push: Push, *, repeated: bool) -> pb.PushReply:
        return pb.PushReply(
            version=self.version,
            staleness=self._ledger.staleness(push.header),
            repeated=repeated,
            dropped=self._ledger.is_dropped(push.header),
        )

    def _sum_up(self, region: Region, work: Work) -> None:
        """Adds a gradient to the sum of its round, and updates the region if that completes it."""
        header = work.push.header
        if (work.start, work.stop) != (region.start, region.stop):
            work.error = MalformedChunk(
                f"chunk [{work.start}, {work.stop}) is not cut as the pace Sync needs, [{region.start}, {region.stop})"
            )
            return
        chunk = self._regions.index(region)
        with self.arena.undo.steps(self._lock, self._sum) as steps:
            steps.begin(region.start, [header.worker], chunk)
            steps.save(region.start, region.stop)
            with self._lock:
                verdict = self._pace.arrived(chunk, header.base_version)
                reach("sync.arrived")
                if verdict.late:
                    self._ledger.drop(header)
            if not verdict.late:
                self._add_to_sum(region, work, verdict.first)
            reach("sync.summed")
            with self._lock:
                self._ledger.advance(header, work.stop)
            steps.end()
        self._complete_rounds(chunk)

    def _add_to_sum(self, region: Region, work: Work, first: bool) -> None:
        for start, stop in region.pieces:
            total = self.arena.sum[start:stop]
            if first:
                work.source.decode((start, stop), total)
            else:
                gradient = region.room(0)[: stop - start]
                work.source.decode((start, stop), gradient)
                kernels.add(total, gradient)

    def _complete_rounds(self, only: int | None = None) -> None:
        """Updates the chunks whose sum is complete, of all or of one; their regions' locks are held."""
        with self._lock:
            due = [chunk for chunk in self._pace.due() if only is None or chunk == only]
        for chunk in due:
            self._update_with_mean(chunk)
        if self._is_sync:
            with self._lock:
                self.arena.counters["version"] = self._pace.rounds()
                reach("sync.version")
                self._moved.notify_all()

    def _update_with_mean(self, chunk: int) -> None:
        """Updates the region of a chunk, whose lock is held, with the mean of its sum."""
        region = self._regions[chunk]
        region.num_changes += 1
        with self._lock:
            for snapshot in self._snapshots:
                snapshot.preserve(region.start, region.stop)
        with self.arena.undo.steps(self._lock, self._all) as steps:
            steps.begin(region.start, [], chunk)
            steps.save(region.start, region.stop)
            with self._lock:
                version = int(self.arena.rounds[chunk]["round"])
                count = self._pace.complete(chunk)
                reach("sync.completed")
            for start, stop in region.pieces:
                mean = self.arena.sum[start:stop]
                mean /= np.float32(count)
                self._updater.update_saved(start, mean, self._schedule.rate(version), version + 1)
                reach("sync.updated")
            steps.end()

    def _name_of(self, element: int) -> str:
        layout = self.arena.layout
        ranges = layout.by_shard[self.arena.specification.shard]
        return next(layout.variables[r.variable].name for r in ranges if r.offset <= element < r.offset + r.size)
