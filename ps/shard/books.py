"""A shard's records of its pushes: ledger, counters, rate, pace and open snapshots, guarded by one lock.

Threads: any. A region's lock is taken before this one, which is never held while numbers are computed.
"""

from __future__ import annotations

import threading

import numpy as np

from downpour.proto import parameter_server_pb2 as pb
from downpour.ps.apply.regions import Push, Region
from downpour.ps.memory.arena import Arena
from downpour.ps.memory.ledger import STALENESS_BUCKETS, Ledger
from downpour.ps.memory.snapshot import Snapshot
from downpour.ps.policy.pace import Means, Pace, Sync, most_workers
from downpour.ps.policy.specification import Policies
from downpour.ps.policy.staleness import Lookahead, gradients_of, rate_factor
from downpour.ps.testing.points import reach

# The moving mean of the staleness is of so many pushes; of fewer where it is small, since one worker that comes or goes
# then changes it at once, and high rates bear no gradient that is later than is thought.
_MEASURED_PUSHES, _FEWEST_MEASURED = 64, 8


class Books:
    """The records of one shard's arena.

    Args:
        arena: Arena of the shard.
        policies: Policies of the shard.

    Attributes:
        lock: Guards everything here.
        moved: Notified when a push is complete, or a worker is removed from the pace.
        ledger: Which pushes have been applied, and how far.
        pace: Which workers may pull, and which rounds are complete.
        is_sync: Whether the pace is `Sync`.
        means: How many pushes make an update, under other paces.
        is_summed: Whether gradients are summed before an update.
        snapshots: Open snapshots; each must preserve a region before it changes.
        staleness: Moving mean of the staleness of pushes. It begins at that of the first workers, if they are equally
            fast; after a restart, at the mean of all pushes. Read unlocked.
    """

    def __init__(self, arena: Arena, policies: Policies) -> None:
        specification = arena.specification
        self.lock = threading.Lock()
        self.moved = threading.Condition(self.lock)
        self.ledger = Ledger(arena.ledger)
        self.means = Means(gradients_of(policies.treatment), policies.pace)
        self.pace = Pace(policies.pace, specification.num_workers, arena.rounds, self.means)
        self.is_sync = isinstance(policies.pace, Sync)
        self.is_summed = self.is_sync or not self.means.are_single
        self.snapshots: list[Snapshot] = []
        self._arena = arena
        self._at_start = arena.counters.copy()  # of earlier processes, or of the checkpoint that was restored
        self._schedule = policies.schedule
        record = arena.rate_record[0]
        self._factor = float(record["factor"]) if record["number"] else 1.0
        self._treatment = policies.treatment
        counts = arena.counters["staleness"]
        begin = min(specification.num_workers, most_workers(policies.pace, 0))
        others, num_counted = max(0, int(begin) - 1), int(counts.sum())
        total = others * max(0, _MEASURED_PUSHES - num_counted) + int(counts @ np.arange(STALENESS_BUCKETS))
        self.staleness = total / max(_MEASURED_PUSHES, num_counted)

    @property
    def updates_ahead(self) -> float:
        """How many updates workers look ahead; 0 except under `Lookahead`."""
        treatment = self._treatment
        if not isinstance(treatment, Lookahead):
            return 0.0
        return treatment.updates or self.staleness / self.means.at(int(self._arena.counters["version"]))

    def rate(self, version: int) -> float:
        """The learning rate of the push that turns `version` into `version + 1`."""
        return self._schedule.rate(version) * self._factor

    def rate_of_mean(self, number: int) -> float:
        """The learning rate of a chunk's update `number` + 1 with a mean of gradients; the lock is held."""
        if self.is_sync:
            return self.rate(number)
        version = int(self._arena.counters["version"])
        updates = self.staleness / self.means.pushes(number)
        return self.rate(version) * rate_factor(self._treatment, updates, version)

    def set_rate(self, number: int, factor: float) -> pb.Rate:
        """Multiplies the schedule by a factor from now on, unless the change is not newer than the last; returns that.

        Args:
            number: Number of the change, counted by the chief.
            factor: Above 0.
        """
        with self.lock:
            record = self._arena.rate_record[0]
            if number > record["number"]:
                record["factor"], record["version"] = factor, self._arena.counters["version"]
                record["number"] = number
                self._factor = factor
            return self._rate()

    def preserve(self, region: Region) -> None:
        """Has open snapshots copy a region that is about to change; the lock is held."""
        for snapshot in self.snapshots:
            snapshot.preserve(region.start, region.stop)

    def complete(self, push: Push, version: int) -> None:
        """Counts a push, all of which has been applied, summed or dropped; the lock is held.

        Args:
            push: The push.
            version: The shard's version.
        """
        header, counters = push.header, self._arena.counters
        # A shard restored from a checkpoint may be behind the version that a worker pulled before.
        stale = max(0, version - header.base_version)
        counters["staleness"][min(stale, STALENESS_BUCKETS - 1)] += 1
        counters["pushes"] += 1
        self.staleness += (stale - self.staleness) / min(_MEASURED_PUSHES, _FEWEST_MEASURED * (1 + self.staleness))
        reach("complete.counted")
        counters["dropped"] += self.ledger.is_dropped(header)
        if not self.is_sync and not push.dropped:
            counters["version"] += 1
            reach("complete.version")
        self.ledger.complete(header, stale)
        reach("complete.ledger")
        self.pace.pushed(header.worker, header.incarnation, header.sequence, header.base_version)

    def status(self, *, since_start: bool = False) -> pb.StatusReply:
        """Counters, as in the reply of `Status`; without the layout.

        Args:
            since_start: Whether pushes are those of this process only.
        """
        arena = self._arena
        with self.lock:
            counters = arena.counters
            before = self._at_start if since_start else np.zeros_like(counters)
            return pb.StatusReply(
                ready=True,
                shard=arena.specification.shard,
                fingerprint=arena.specification.fingerprint,
                version=int(counters["version"]),
                pushes_refused=int(counters["refused"] - before["refused"]),
                pushes_repeated=int(counters["repeated"] - before["repeated"]),
                pushes=int(counters["pushes"] - before["pushes"]),
                pushes_dropped=int(counters["dropped"] - before["dropped"]),
                staleness_histogram=(counters["staleness"] - before["staleness"]).tolist(),
                state_bytes=arena.num_bytes,
                job_id=arena.specification.job_id,
                incarnation=int(arena.ledger["incarnation"].max()),
                rate=self._rate(),
            )

    def _rate(self) -> pb.Rate:
        record = self._arena.rate_record[0]
        return pb.Rate(number=int(record["number"]), factor=self._factor, version=int(record["version"]))
