"""Batches of simulated workers: leases of each, every position once an epoch; parts of a stream where each has one."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Generator, Iterator
from dataclasses import dataclass, replace
from itertools import islice, pairwise
from typing import Any

import numpy as np

from downpour.launch.job import Job, recipe
from downpour.launch.planning.fleet import CallCosts, Fleet
from downpour.launch.planning.queueing import Event, Kind, events
from downpour.launch.planning.timeline import Timeline, batches
from downpour.model.data import Batches, GeneratedImages, Stream
from downpour.model.data.batches import PlacedBatch
from downpour.model.data.order import Lease
from downpour.model.vision.records import RecordCounts

BATCH, RECORDS = 4, 200


@dataclass(frozen=True)
class Positions(GeneratedImages):
    """Batches are the positions of their leases."""

    def training(self, *, batch_size: int, seed: int, leases: Iterator[Lease]) -> Batches:
        def made() -> Generator[PlacedBatch, None, None]:
            places = ((lease.epoch, p) for lease in leases for p in range(lease.start, lease.stop))
            for number in range(10**6):
                yield (list(islice(places, batch_size)),), number

        return Batches(made(), RecordCounts())


def job_of(data: Any, num_workers: int) -> Job:
    job = recipe.load("quickstart")
    return replace(job, data=data, batch_size=BATCH, cluster=replace(job.cluster, num_workers=num_workers))


def timeline_of(num_workers: int) -> Timeline:
    return Timeline(events(Fleet(num_workers, 1.0, [CallCosts()], [CallCosts()])))


def computed(timeline: Timeline) -> Iterator[Event]:
    while True:
        event = timeline.next()
        if event.kind is Kind.COMPUTED:
            yield event


def test_every_position_is_trained_on_once_an_epoch_by_the_worker_that_has_its_lease() -> None:
    timeline, of_worker = timeline_of(5), defaultdict[int, list[tuple[int, int]]](list)
    made = batches(job_of(Positions(8, 5, num_records=RECORDS), 5), timeline)
    for event, (batch,) in zip(computed(timeline), islice(made, 120), strict=False):
        of_worker[event.worker] += batch
    trained = [place for places in of_worker.values() for place in places]
    assert len(trained) == len(set(trained)) == 120 * BATCH
    assert [place for place in sorted(trained) if place[0] == 0] == [(0, position) for position in range(RECORDS)]
    for places in of_worker.values():
        assert places == sorted(places), "a worker's leases, in order"
        assert all(first[1] + 1 == second[1] for first, second in pairwise(places[:BATCH]))


def test_one_worker_trains_in_the_order_of_positions() -> None:
    made = batches(job_of(Positions(8, 5, num_records=RECORDS), 1), timeline_of(1))
    assert [place for (batch,) in islice(made, 100) for place in batch] == [
        (epoch, position) for epoch in (0, 1) for position in range(RECORDS)
    ]


def test_a_stream_is_opened_for_every_worker_and_read_by_it() -> None:
    opened: list[tuple[int, int]] = []

    def part(worker: int, num_workers: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        opened.append((worker, num_workers))
        return ((np.full(2, worker, "float32"), np.zeros(1, "float32")) for _ in range(1000))

    timeline = timeline_of(3)
    made = batches(job_of(Stream(part), 3), timeline)
    for event, (x, *_) in zip(computed(timeline), islice(made, 12), strict=False):
        assert (x == event.worker).all()
    made.close()
    assert set(opened) == {(0, 3), (1, 3), (2, 3)}
