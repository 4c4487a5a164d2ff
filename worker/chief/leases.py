"""Assigns the positions of epochs to workers, so that all workers together train on every record once an epoch.

Pure: no clock, no I/O, no threads; `downpour.worker.chief.coordinator` holds a table and decides which workers are
lost. A worker requests a lease when its data pipeline needs one, and reports how many positions are done: those whose
gradients every shard has acknowledged. Exactly the unfinished positions of a lost or stopped worker are given back.

Positions of a worker that dies after a push and before the report of it are granted again although they were trained
on. No position is left out.
"""

from __future__ import annotations

import bisect
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Self

from downpour.model.data.order import Lease
from downpour.proto.errors import LeaseUnknown, WorkerSuperseded

_LEASE_BATCHES = 4  # trained on between two calls to the chief
_LEASES_PER_EPOCH = 4  # each worker gets at least so many, so that small sets are shared evenly


def lease_records(num_records: int, batch_size: int, num_workers: int) -> int:
    """Records of the shortest lease: `_LEASE_BATCHES` batches, fewer where an epoch is too short, at least one.

    Args:
        num_records: Records of an epoch.
        batch_size: Records of a batch.
        num_workers: Workers that share an epoch.
    """
    batches = num_records // (batch_size * num_workers * _LEASES_PER_EPOCH)
    return batch_size * min(max(batches, 1), _LEASE_BATCHES)


@dataclass
class _Holder:
    """The newest incarnation of a worker, and its leases.

    Invariant: the positions of `leases` are `given - done`.

    Attributes:
        incarnation: Incarnation of the worker.
        num_leases: Number of leases granted to it.
        given: Positions of all these leases.
        done: How many of these positions are finished, or were given back.
        leases: The leases it holds, in order; the first begins at its first unfinished position.
        last: The lease granted last, as granted.
        released: Whether it has counted as lost since then. It may still be running.
    """

    incarnation: int
    num_leases: int = 0
    given: int = 0
    done: int = 0
    leases: deque[Lease] = field(default_factory=deque)
    last: Lease | None = None
    released: bool = False


class LeaseTable:
    """The positions of all epochs: finished, held by a worker, given back, or not granted yet.

    Args:
        num_records: Positions of an epoch.
        lease_records: Positions of the shortest lease, except the last of an epoch and what was given back.

    Attributes:
        num_records: As given.
        lease_records: As given.
        epoch: The newest epoch of which positions were granted.
        records_repeated: Positions granted again after they had been given back or their lease was lost with a
            journal; these may be trained on twice.
    """

    def __init__(self, num_records: int, lease_records: int) -> None:
        if num_records < 1 or lease_records < 1:
            raise ValueError(f"num_records is {num_records} and lease_records {lease_records}; give at least 1 of each")
        self.num_records = num_records
        self.epoch = 0
        self.records_repeated = 0
        self.lease_records = lease_records
        self._next = 0  # first position of the epoch that was not granted
        self._returned: list[Lease] = []  # sorted
        self._holders: dict[int, _Holder] = {}

    @classmethod
    def from_state(cls, state: dict[str, Any], lease_records: int) -> Self:
        """Makes a table that continues from `state`, with new leases of `lease_records` positions.

        Raises:
            KeyError, TypeError, ValueError, AttributeError: It is not a state of a table.
        """
        table = cls(int(state["num_records"]), lease_records)
        table.epoch, table._next = int(state["epoch"]), int(state["next"])
        table.records_repeated = int(state["records_repeated"])
        table._returned = [_lease(lease) for lease in state["returned"]]
        for worker, holder in state.get("holders", {}).items():
            leases = deque(_lease(lease) for lease in holder["leases"])
            last = _lease(holder["last"]) if holder["last"] else None
            numbers = {key: int(holder[key]) for key in ("incarnation", "num_leases", "given", "done")}
            released = bool(holder["released"])
            table._holders[int(worker)] = _Holder(**numbers, leases=leases, last=last, released=released)
        return table

    def state(self, *, with_holders: bool = False) -> dict[str, Any]:
        """Returns the table as JSON values.

        Args:
            with_holders: Whether workers continue with the leases they hold. If not, these are given back in the
                state, so that restarted workers train on every record at least once.
        """
        returned = list(self._returned)
        if not with_holders:
            returned = sorted([*returned, *self._held()])
        state = {
            "num_records": self.num_records,
            "epoch": self.epoch,
            "next": self._next,
            "records_repeated": self.records_repeated,
            "returned": [_plain(lease) for lease in returned],
        }
        if with_holders:
            state["holders"] = {str(worker): _plain_holder(holder) for worker, holder in self._holders.items()}
        return state

    def grant(self, worker: int, incarnation: int, number: int, wanted: int = 0) -> Lease:
        """Grants a lease: first positions that were given back, then the next of the epoch, or of a new epoch.

        Args:
            worker: Index of the worker.
            incarnation: Incarnation of its process; leases of an older one are given back.
            number: How many leases this incarnation has received. The same number again, after a lost reply, returns
                the same lease.
            wanted: Positions that it should have; it is a whole number of the shortest leases.

        Raises:
            WorkerSuperseded: A newer incarnation is known.
            LeaseUnknown: The number does not match the table, which is then older than this incarnation.
        """
        holder = self._holder(worker, incarnation)
        if number == holder.num_leases - 1 and holder.last is not None:
            if not holder.released:
                return holder.last
            # It never received this lease, which may have been granted to another worker since.
            holder.num_leases -= 1
            holder.given -= holder.last.num_records
            holder.done = holder.given
        if number != holder.num_leases:
            raise LeaseUnknown(
                f"worker {worker} requested lease {number}, and the chief has granted {holder.num_leases}; "
                "the chief was restarted without its newest journal, so this worker must restart as well"
            )
        lease = self._take(wanted)
        holder.num_leases += 1
        holder.given += lease.num_records
        holder.leases.append(lease)
        holder.last, holder.released = lease, False
        return lease

    def done(self, worker: int, incarnation: int, records_done: int) -> None:
        """Records how many positions an incarnation has finished since its start, over its leases in order.

        Reports that are repeated, late, or of an incarnation without leases change nothing; see `given`.
        """
        holder = self._holders.get(worker)
        if holder is None or holder.incarnation != incarnation:
            return
        left = min(records_done, holder.given) - holder.done
        while left > 0:
            lease = holder.leases.popleft()
            finished = min(left, lease.num_records)
            if finished < lease.num_records:
                holder.leases.appendleft(Lease(lease.epoch, lease.start + finished, lease.stop))
            holder.done += finished
            left -= finished

    def given(self, worker: int, incarnation: int) -> int:
        """Number of positions granted to an incarnation, as recorded in this table.

        Positions it finishes beyond these were granted by a chief whose journal is lost, and are granted again.
        """
        holder = self._holders.get(worker)
        return holder.given if holder is not None and holder.incarnation == incarnation else 0

    def release(self, worker: int, incarnation: int) -> None:
        """Gives back the unfinished positions of an incarnation that is lost or has stopped, or of an older one.

        If it is still running, it continues with new leases.
        """
        holder = self._holders.get(worker)
        if holder is None or holder.incarnation > incarnation:
            return
        for lease in holder.leases:
            bisect.insort(self._returned, lease)
        holder.leases.clear()
        holder.done, holder.released = holder.given, True

    @property
    def num_granted(self) -> int:
        """Positions granted so far, over all epochs, each once."""
        return self.epoch * self.num_records + self._next

    def admit(self, worker: int, incarnation: int) -> None:
        """Notes that an incarnation may have leases."""
        self._holder(worker, incarnation)

    def has_admitted(self, worker: int) -> bool:
        """Whether a worker, or an earlier process of its index, may have leases or has had some."""
        return worker in self._holders

    @property
    def has_returned(self) -> bool:
        """Whether positions were given back that are not granted again."""
        return bool(self._returned)

    @property
    def left_in_epoch(self) -> int:
        """Positions of the epoch that the next lease begins in, that were not granted yet."""
        return self.num_records - self._next or self.num_records

    @property
    def finished_in_epoch(self) -> int:
        """Positions of `epoch` that are finished."""
        return self._next - self._num_open(self.epoch)

    @property
    def epochs(self) -> float:
        """Positions finished, over all epochs, in epochs."""
        return (self.num_granted - self._num_open()) / self.num_records

    def _holder(self, worker: int, incarnation: int) -> _Holder:
        """Returns the entry of an incarnation, which replaces that of an older one."""
        holder = self._holders.get(worker)
        if holder is not None and incarnation < holder.incarnation:
            raise WorkerSuperseded(f"worker {worker} has a newer incarnation, which holds its leases")
        if holder is None or incarnation > holder.incarnation:
            if holder is not None:
                self.release(worker, holder.incarnation)
            holder = self._holders[worker] = _Holder(incarnation)
        return holder

    def _take(self, wanted: int) -> Lease:
        if self._returned:
            lease = self._returned.pop(0)
            self.records_repeated += lease.num_records
            return lease
        if self._next == self.num_records:
            self.epoch, self._next = self.epoch + 1, 0
        records = self.lease_records * max(wanted // self.lease_records, 1)
        start, self._next = self._next, min(self._next + records, self.num_records)
        return Lease(self.epoch, start, self._next)

    def _held(self) -> list[Lease]:
        return [lease for holder in self._holders.values() for lease in holder.leases]

    def _num_open(self, epoch: int | None = None) -> int:
        """Positions, of one epoch or all, that were granted and are not finished."""
        unfinished = [*self._returned, *self._held()]
        return sum(lease.num_records for lease in unfinished if epoch in (None, lease.epoch))


def _lease(numbers: Sequence[Any]) -> Lease:
    epoch, start, stop = numbers
    return Lease(int(epoch), int(start), int(stop))


def _plain(lease: Lease) -> list[int]:
    return [lease.epoch, lease.start, lease.stop]


def _plain_holder(holder: _Holder) -> dict[str, Any]:
    leases = [_plain(lease) for lease in holder.leases]
    return vars(holder) | {"leases": leases, "last": _plain(holder.last) if holder.last else None}
