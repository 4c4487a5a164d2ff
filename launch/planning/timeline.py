"""The events of a simulated fleet, and the batches that its workers train on, assembled ahead.

Events do not depend on what is computed, so they are known before: the thread that assembles batches takes the next
worker from the future. Batches are those that the chief's leases give, in the order in which workers compute.

Threads: one takes the events, another assembles batches (`downpour.model.data.prefetch`). One lock guards both ends.
"""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Generator, Iterator

from downpour.launch.job import Job
from downpour.launch.planning.queueing import Event, Kind
from downpour.model.data.batches import Batches, PlacedBatch, part_of, positions_in_batch
from downpour.model.data.order import Lease
from downpour.model.vision.records import RecordCounts
from downpour.worker.chief.lease_sizes import LeaseSizes
from downpour.worker.chief.leases import LeaseTable, lease_records

_INCARNATION = 1


class Timeline:
    """Events in order; and, ahead of that, those at which a gradient is computed.

    Args:
        events: Yields events without end.
    """

    def __init__(self, events: Iterator[Event]) -> None:
        self._events, self._lock = events, threading.Lock()
        self._drawn, self._computed = deque[Event](), deque[Event]()  # and not taken

    def next(self) -> Event:
        """Takes the next event."""
        with self._lock:
            if not self._drawn:
                self._draw()
            return self._drawn.popleft()

    def next_computed(self) -> Event:
        """Takes the next event of kind COMPUTED; `next` takes it as well."""
        with self._lock:
            while not self._computed:
                self._draw()
            return self._computed.popleft()

    def _draw(self) -> None:
        event = next(self._events)
        self._drawn.append(event)
        if event.kind is Kind.COMPUTED:
            self._computed.append(event)


def batches(job: Job, timeline: Timeline) -> Batches:
    """The batch of every event of kind COMPUTED, in order.

    Args:
        job: The job, with the number of workers that the events are of.
        timeline: The events.
    """
    if part_of(job.data, 0, job.cluster.num_workers) is job.data:
        whole: Batches = job.data.training(batch_size=job.batch_size, seed=job.seed, leases=_leases(job, timeline))
        return whole
    return Batches(_batches_of_parts(job, timeline), RecordCounts(judge_after=None))


def _leases(job: Job, timeline: Timeline) -> Iterator[Lease]:
    """Yields the positions of one batch after the other, cut out of the leases of the workers that compute them."""
    in_batch, num_workers = positions_in_batch(job.data, job.batch_size), job.cluster.num_workers
    table = LeaseTable(job.data.num_records, lease_records(job.data.num_records, in_batch, num_workers))
    sizes = LeaseSizes()
    left = [Lease(0, 0, 0)] * num_workers  # of each worker's newest lease
    num_leases, num_positions = [0] * num_workers, [0] * num_workers
    while True:
        event = timeline.next_computed()
        worker, missing = event.worker, in_batch
        while missing:
            if not left[worker].num_records:
                number = num_leases[worker]
                left[worker] = sizes.grant(table, worker, _INCARNATION, number, num_workers, event.now)
                num_leases[worker] += 1
            epoch, start, stop = left[worker].epoch, left[worker].start, left[worker].stop
            end = min(start + missing, stop)
            yield Lease(epoch, start, end)
            left[worker] = Lease(epoch, end, stop)
            missing -= end - start
        num_positions[worker] += in_batch
        table.done(worker, _INCARNATION, num_positions[worker])


def _batches_of_parts(job: Job, timeline: Timeline) -> Generator[PlacedBatch, None, None]:
    """Yields batches of a source of which each worker reads a part of its own; the parts are opened when needed."""
    parts: dict[int, Batches] = {}
    endless = iter(lambda: Lease(0, 0, job.batch_size), None)
    with contextlib.ExitStack() as opened:
        for position, event in enumerate(iter(timeline.next_computed, None), start=1):
            if event.worker not in parts:
                data = part_of(job.data, event.worker, job.cluster.num_workers)
                part = data.training(batch_size=job.batch_size, seed=job.seed, leases=endless)
                parts[event.worker] = opened.enter_context(part)
            yield next(parts[event.worker]), position
