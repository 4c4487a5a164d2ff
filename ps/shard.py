"""A shard's numbers: pulls, pushes and counters over an arena. No gRPC, no TensorFlow.

Threads: any number may call. One lock guards the arena; it is held for one chunk at a time, so pulls and pushes
of several workers interleave chunk by chunk (Hogwild within a push, atomic within a chunk). A push advances
the version when its last element has been applied, by one. Under the pace `Sync` gradients are summed instead, chunk
by chunk, and the version advances when every chunk has been updated with the mean of its sum.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from downpour.proto import codec
from downpour.proto import parameter_server_pb2 as pb
from downpour.proto.errors import MalformedChunk, NonFinite, NotYet
from downpour.ps import averages, kernels, pace, rules, schedules, staleness
from downpour.ps.arena import STALENESS_BUCKETS, Arena
from downpour.ps.layout import STATISTIC
from downpour.ps.ledger import Known, Ledger
from downpour.ps.named import from_message
from downpour.ps.pace import Async, Pace, Sync
from downpour.ps.snapshot import Snapshot
from downpour.ps.staleness import Compensate, Keep, Treatment


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
    """

    header: pb.PushHeader
    learning_rate: float
    step: int
    repeated: bool
    dropped: bool
    position: int = 0


class Shard:
    """One shard of the parameters, ready to serve.

    Args:
        arena: Complete memory of the shard.
    """

    def __init__(self, arena: Arena) -> None:
        self.arena = arena
        self.size = arena.parameters.size
        self.num_trained = arena.layout.num_trained(arena.specification.shard)
        self.num_pushed = arena.layout.num_pushed(arena.specification.shard)
        self._spans = arena.layout.spans(arena.specification.shard)
        kernels.load(with_average=arena.average is not None)
        self._update = kernels.update_for(from_message(rules.BY_NAME, arena.specification.rule))
        self._schedule: schedules.Schedule = from_message(schedules.BY_NAME, arena.specification.schedule)
        specification = arena.specification
        self._average: averages.Average | None = None
        if specification.HasField("average"):
            self._average = from_message(averages.BY_NAME, specification.average)
        self._staleness: Treatment = Keep()
        if specification.HasField("staleness"):
            self._staleness = from_message(staleness.BY_NAME, specification.staleness)
        mode = from_message(pace.BY_NAME, specification.pace) if specification.HasField("pace") else Async()
        self._pace = Pace(mode, specification.num_workers, arena.rounds)
        self._is_sync = isinstance(self._pace.mode, Sync)
        self._ledger = Ledger(arena.ledger)
        self._lock = threading.Lock()
        self._moved = threading.Condition(self._lock)  # a push is complete, or a worker is gone
        self._snapshots: list[Snapshot] = []  # being read
        # One scratch vector for decoded gradients is enough: it is only used with the lock held.
        self._scratch = np.empty(codec.CHUNK_ELEMENTS, np.float32)

    @property
    def version(self) -> int:
        """Pushes applied. Read without the lock: one aligned 8-byte word."""
        return int(self.arena.counters["version"])

    def read(self, start: int, stop: int, wire: int) -> np.ndarray:
        """Elements [start, stop) in the wire dtype of a codec, a copy."""
        out = np.empty(stop - start, codec.WIRE_DTYPES[wire])
        with self._lock:
            if wire == codec.BFLOAT16:
                kernels.narrow(self.arena.parameters[start:stop], out)
            else:
                out[:] = self.arena.parameters[start:stop]
        return out

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
        with self._lock:
            for chunk, count in self._pace.absent(gone):
                self._update_with_mean(self.arena.chunks[chunk], count, self.version)
            self._moved.notify_all()

    def begin(self, header: pb.PushHeader) -> Push:
        """Opens a push; its rate, its number and its staleness are those of this moment.

        Raises:
            WorkerSuperseded: See `Ledger.begin`.
            TooManyWorkers: See `Ledger.begin`.
        """
        with self._lock:
            known = self._ledger.begin(header)
            if known is Known.COMPLETE:
                self.arena.counters["repeated"] += 1
            stale = max(0, self.version - header.base_version)
            if known is Known.NEW and staleness.drops(self._staleness, stale):
                self._ledger.drop(header)
            rate = self._schedule.rate(self.version) * staleness.rate_factor(self._staleness, stale)
            dropped = not self._is_sync and self._ledger.is_dropped(header)
            return Push(header, rate, self.version + 1, known is Known.COMPLETE, dropped)

    def apply(self, push: Push, chunk: codec.Chunk) -> None:
        """Applies the next chunk of a push, or the part of it that has not been applied before.

        Raises:
            MalformedChunk: Not the next elements of the vector, or not readable.
            NonFinite: It has NaN or infinity; nothing of the chunk is applied.
            WorkerSuperseded: The worker has begun a later push.
        """
        values = chunk.values()
        stop = chunk.start + chunk.count
        if chunk.start != push.position or stop > self.num_pushed or not 0 < chunk.count <= codec.CHUNK_ELEMENTS:
            raise MalformedChunk(
                f"chunk [{chunk.start}, {stop}) where one at {push.position} was due, "
                f"of at most {codec.CHUNK_ELEMENTS} elements and within {self.num_pushed}"
            )
        push.position = stop
        if push.repeated:
            return
        with self._lock:
            done = self._ledger.applied(push.header)
            if stop <= done:
                return
            if push.dropped:
                self._ledger.advance(push.header, stop)
                return
            gradient = self._decode(chunk.codec, values)
            self._refuse_non_finite(push, chunk.start, gradient)
            if self._is_sync:
                self._sum_up(push, chunk, gradient)
            else:
                first = max(chunk.start, done)
                self._compensate(chunk, gradient)
                self._update_range(first, gradient[first - chunk.start :], push.learning_rate, push.step)
            self._ledger.advance(push.header, stop)

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
                self._complete(push)
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
            )

    @contextlib.contextmanager
    def snapshot(self) -> Iterator[Snapshot]:
        """The version and `Arena.saved`, all of one moment, for as long as the block lasts."""
        with self._lock:
            snapshot = Snapshot(self.arena.saved, self.version, self._lock)
            self._snapshots.append(snapshot)
        try:
            yield snapshot
        finally:
            with self._lock:
                self._snapshots.remove(snapshot)

    def _decode(self, wire: int, values: np.ndarray) -> np.ndarray:
        gradient = self._scratch[: values.size]
        self._convert(wire, values, gradient)
        return gradient

    @staticmethod
    def _convert(wire: int, values: np.ndarray, out: np.ndarray) -> None:
        """From a wire dtype to float32."""
        if wire == codec.BFLOAT16:
            kernels.widen(values, out)
        else:
            out[:] = values

    def _refuse_non_finite(self, push: Push, start: int, gradient: np.ndarray) -> None:
        if not kernels.num_non_finite(gradient):
            return
        self.arena.counters["refused"] += 1
        where = start + int(np.flatnonzero(~np.isfinite(gradient))[0])
        raise NonFinite(
            f"push {push.header.sequence} of worker {push.header.worker} has {kernels.num_non_finite(gradient)} "
            f"numbers that are not finite, the first in {self._name_of(where)}"
        )

    def _complete(self, push: Push) -> None:
        """Counts a push, all of which has been applied, summed or dropped."""
        header, counters = push.header, self.arena.counters
        # A shard that came back from a checkpoint may be behind what a worker has pulled before.
        stale = max(0, self.version - header.base_version)
        counters["staleness"][min(stale, STALENESS_BUCKETS - 1)] += 1
        counters["pushes"] += 1
        counters["dropped"] += self._ledger.is_dropped(header)
        if not self._is_sync and not push.dropped:
            counters["version"] += 1
        self._ledger.complete(header, stale)
        self._pace.pushed(header.worker, header.incarnation, header.sequence, header.base_version)
        self._moved.notify_all()

    def _reply(self, push: Push, *, repeated: bool) -> pb.PushReply:
        return pb.PushReply(
            version=self.version,
            staleness=self._ledger.staleness(push.header),
            repeated=repeated,
            dropped=self._ledger.is_dropped(push.header),
        )

    def _compensate(self, chunk: codec.Chunk, gradient: np.ndarray) -> None:
        """Corrects a chunk's gradient for how far its parameters have moved, if the job says so."""
        if not isinstance(self._staleness, Compensate) or chunk.start >= self.num_trained:
            return
        base = np.empty(chunk.count, np.float32)
        self._convert(chunk.codec, chunk.base_values(), base)
        stop = chunk.start + chunk.count
        kernels.compensate(gradient, self.arena.parameters[chunk.start : stop], base, self._staleness.strength)

    def _sum_up(self, push: Push, chunk: codec.Chunk, gradient: np.ndarray) -> None:
        """Adds a chunk's gradient to the sum of its round, and updates the chunk if that completes it."""
        bounds = chunk.start, chunk.start + chunk.count
        if bounds not in self.arena.chunks:
            raise MalformedChunk(f"chunk {bounds} is not cut as the pace Sync needs, every {codec.CHUNK_ELEMENTS}")
        verdict = self._pace.arrived(self.arena.chunks.index(bounds), push.header.base_version)
        if verdict.late:
            self._ledger.drop(push.header)
            return
        total = self.arena.sum[slice(*bounds)]
        if verdict.first:
            total[:] = gradient
        else:
            kernels.add(total, gradient)
        if verdict.count:
            self._update_with_mean(bounds, verdict.count, push.header.base_version)

    def _update_with_mean(self, bounds: tuple[int, int], count: int, version: int) -> None:
        """Updates a chunk of `version` with the mean of its sum."""
        mean = self.arena.sum[slice(*bounds)]
        mean /= np.float32(count)
        self._update_range(bounds[0], mean, self._schedule.rate(version), version + 1)
        self.arena.counters["version"] = self._pace.rounds()
        self._moved.notify_all()

    def _update_range(self, start: int, gradient: np.ndarray, rate: float, step: int) -> None:
        """Sends the gradient of [start, start + n) through the rule or, for statistics, adds it; then the average."""
        stop = start + gradient.size
        for snapshot in self._snapshots:
            snapshot.preserve(start, stop)
        for span in self._spans:
            begin, end = max(start, span.start), min(stop, span.stop)
            if begin >= end:
                continue
            part = gradient[begin - start : end - start]
            if span.kind == STATISTIC:
                kernels.add(self.arena.parameters[begin:end], part)
            else:
                slots = [slot[begin:end] for slot in self.arena.slots]
                w = self.arena.parameters[begin:end]
                self._update(w, slots, part, rate * span.rate, span.weight_decay, span.decoupled_decay, step)
        if self.arena.average is not None and self._average is not None:
            changed = slice(start, stop)
            kernels.average(self.arena.average[changed], self.arena.parameters[changed], self._average.weight(step))

    def _name_of(self, element: int) -> str:
        layout = self.arena.layout
        ranges = layout.by_shard[self.arena.specification.shard]
        return next(layout.variables[r.variable].name for r in ranges if r.offset <= element < r.offset + r.size)
