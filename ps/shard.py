"""A shard's numbers: pulls, pushes and counters over an arena. No gRPC, no TensorFlow.

Threads: any number may call. One lock guards the arena; it is held for one chunk at a time, so pulls and pushes
of several workers interleave chunk by chunk (Hogwild within a push, atomic within a chunk). A push advances
the version when its last element has been applied, by one.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from downpour.proto import codec
from downpour.proto import parameter_server_pb2 as pb
from downpour.proto.errors import MalformedChunk, NonFinite
from downpour.ps import kernels, rules, schedules
from downpour.ps.arena import STALENESS_BUCKETS, Arena
from downpour.ps.layout import STATISTIC
from downpour.ps.ledger import Ledger
from downpour.ps.named import from_message
from downpour.ps.snapshot import Snapshot


@dataclass
class Push:
    """A push while it arrives.

    Attributes:
        header: Its name.
        learning_rate: The schedule's when it began.
        step: Its number, from 1; pushes that overlap share one.
        repeated: It had been applied before; nothing of it is applied again.
        position: First element that has not arrived yet.
    """

    header: pb.PushHeader
    learning_rate: float
    step: int
    repeated: bool
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
        self._spans = arena.layout.spans(arena.specification.shard)
        kernels.load()
        self._update = kernels.update_for(from_message(rules.BY_NAME, arena.specification.rule))
        self._schedule: schedules.Schedule = from_message(schedules.BY_NAME, arena.specification.schedule)
        self._ledger = Ledger(arena.ledger)
        self._lock = threading.Lock()
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

    def begin(self, header: pb.PushHeader) -> Push:
        """Opens a push; its rate and its number are those of this moment.

        Raises:
            WorkerSuperseded: See `Ledger.begin`.
            TooManyWorkers: See `Ledger.begin`.
        """
        with self._lock:
            repeated = self._ledger.begin(header)
            if repeated:
                self.arena.counters["repeated"] += 1
            return Push(header, self._schedule.rate(self.version), self.version + 1, repeated)

    def apply(self, push: Push, chunk: codec.Chunk) -> None:
        """Applies the next chunk of a push, or the part of it that has not been applied before.

        Raises:
            MalformedChunk: Not the next elements of the vector, or not readable.
            NonFinite: It has NaN or infinity; nothing of the chunk is applied.
            WorkerSuperseded: The worker has begun a later push.
        """
        values = chunk.values()
        stop = chunk.start + chunk.count
        if chunk.start != push.position or stop > self.size or not 0 < chunk.count <= codec.CHUNK_ELEMENTS:
            raise MalformedChunk(
                f"chunk [{chunk.start}, {stop}) where one at {push.position} was due, "
                f"of at most {codec.CHUNK_ELEMENTS} elements and within {self.size}"
            )
        push.position = stop
        if push.repeated:
            return
        with self._lock:
            done = self._ledger.applied(push.header)
            if stop <= done:
                return
            gradient = self._decode(chunk.codec, values)
            self._refuse_non_finite(push, chunk.start, gradient)
            first = max(chunk.start, done)
            for snapshot in self._snapshots:
                snapshot.preserve(first, stop)
            self._apply_spans(first, gradient[first - chunk.start :], push)
            self._ledger.advance(push.header, stop)

    def finish(self, push: Push) -> pb.PushReply:
        """Counts a push whose last chunk has been applied.

        Raises:
            MalformedChunk: Elements are missing.
            WorkerSuperseded: The worker has begun a later push.
        """
        if push.position != self.size:
            raise MalformedChunk(f"the push ended after {push.position} of {self.size} elements")
        with self._lock:
            if push.repeated or self._ledger.is_complete(push.header):
                return pb.PushReply(version=self.version, staleness=self._ledger.staleness(push.header), repeated=True)
            self._ledger.applied(push.header)
            counters = self.arena.counters
            # A shard that came back from a checkpoint may be behind what a worker has pulled before.
            staleness = max(0, self.version - push.header.base_version)
            counters["staleness"][min(staleness, STALENESS_BUCKETS - 1)] += 1
            counters["version"] += 1
            self._ledger.complete(push.header, staleness)
            return pb.PushReply(version=self.version, staleness=staleness)

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
                staleness_histogram=counters["staleness"].tolist(),
                state_bytes=self.arena.num_bytes,
            )

    @contextlib.contextmanager
    def snapshot(self) -> Iterator[Snapshot]:
        """The version, the parameters and every slot, all of one moment, for as long as the block lasts."""
        with self._lock:
            snapshot = Snapshot([self.arena.parameters, *self.arena.slots], self.version, self._lock)
            self._snapshots.append(snapshot)
        try:
            yield snapshot
        finally:
            with self._lock:
                self._snapshots.remove(snapshot)

    def _decode(self, wire: int, values: np.ndarray) -> np.ndarray:
        gradient = self._scratch[: values.size]
        if wire == codec.BFLOAT16:
            kernels.widen(values, gradient)
        else:
            gradient[:] = values
        return gradient

    def _refuse_non_finite(self, push: Push, start: int, gradient: np.ndarray) -> None:
        if not kernels.num_non_finite(gradient):
            return
        self.arena.counters["refused"] += 1
        where = start + int(np.flatnonzero(~np.isfinite(gradient))[0])
        raise NonFinite(
            f"push {push.header.sequence} of worker {push.header.worker} has {kernels.num_non_finite(gradient)} "
            f"numbers that are not finite, the first in {self._name_of(where)}"
        )

    def _apply_spans(self, start: int, gradient: np.ndarray, push: Push) -> None:
        """Sends the gradient of [start, start + n) through the rule or, for statistics, adds it."""
        stop = start + gradient.size
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
                self._update(w, slots, part, push.learning_rate, span.weight_decay, 0.0, push.step)

    def _name_of(self, element: int) -> str:
        layout = self.arena.layout
        ranges = layout.by_shard[self.arena.specification.shard]
        return next(layout.variables[r.variable].name for r in ranges if r.offset <= element < r.offset + r.size)
