"""Who trains on which positions of which epoch, so that all workers together see every record once an epoch.

Pure: no clock, no I/O, no threads; `downpour.worker.chief.coordinator` holds a table and says who is gone. A worker
asks for a lease when its data pipeline needs one, and reports how many positions are done: those whose gradients every
shard has acknowledged. What a worker leaves behind is given back from the exact position on.

What may happen twice: a worker that dies after a push and before the report of it leaves positions that were trained on
and are granted again. Nothing is left out.
"""

from __future__ import annotations

import bisect
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Self

from downpour.model.data.order import Lease
from downpour.proto.errors import LeaseUnknown, WorkerSuperseded

_LEASE_BATCHES = 4  # between two calls to the chief
_LEASES_PER_EPOCH = 4  # each worker gets at least so many, so that small sets are shared evenly


def lease_records(num_records: int, batch_size: int, num_workers: int) -> int:
    """How many records a lease should have: whole batches, a few, or fewer where an epoch is too short; at least one.

    Args:
        num_records: Of an epoch.
        batch_size: Records that a worker trains on at a time.
        num_workers: Who share an epoch.
    """
    batches = num_records // (batch_size * num_workers * _LEASES_PER_EPOCH)
    return batch_size * min(max(batches, 1), _LEASE_BATCHES)


@dataclass
class _Holder:
    """The newest incarnation of a worker, and its leases.

    Invariant: the positions of `leases` are `given - done`.

    Attributes:
        incarnation: Of the worker.
        num_leases: Leases it was granted.
        given: Positions of all of them.
        done: How many of those are finished, or were given back.
        leases: What it holds, in order; the first begins where it is not finished.
        last: The lease granted last, as granted.
        released: Whether it was taken for gone since then. It may come back.
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
        lease_records: Positions of a lease, except the last of an epoch and what was given back.

    Attributes:
        num_records: As given.
        lease_records: As given.
        epoch: The newest epoch of which positions were granted.
        records_repeated: Positions granted again after they had been given back or their lease was lost with a
            journal, which may be seen twice.
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
        """A table that goes on where `state` was taken, with leases of another length from then on.

        Raises:
            KeyError, TypeError, ValueError, AttributeError: It is no state of a table.
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
        """The table as JSON takes it.

        Args:
            with_holders: Whether workers go on with the leases they hold. Without, these are given back in the state,
                so that workers which start anew see every record at least once.
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

    def grant(self, worker: int, incarnation: int, number: int) -> Lease:
        """A lease: what was given back comes first, then the next of the epoch, or of a new one when it is used up.

        Args:
            worker: Index of the worker.
            incarnation: Of its process; what an older one holds is given back.
            number: How many leases this incarnation has received. The same number again, since the reply was lost,
                gives the same lease.

        Raises:
            WorkerSuperseded: A newer incarnation is known.
            LeaseUnknown: The number does not follow from what the table knows, which is then older than this
                incarnation.
        """
        holder = self._holder(worker, incarnation)
        if number == holder.num_leases - 1 and holder.last is not None:
            if not holder.released:
                return holder.last
            # It never received this one, and somebody else may have it by now.
            holder.num_leases -= 1
            holder.given -= holder.last.num_records
            holder.done = holder.given
        if number != holder.num_leases:
            raise LeaseUnknown(
                f"worker {worker} asks for lease {number} and the chief knows of {holder.num_leases}; "
                "it was started anew without its newest journal, so this worker must start anew as well"
            )
        lease = self._take()
        holder.num_leases += 1
        holder.given += lease.num_records
        holder.leases.append(lease)
        holder.last, holder.released = lease, False
        return lease

    def done(self, worker: int, incarnation: int, records_done: int) -> None:
        """Notes how many positions an incarnation has finished since its start, over its leases in order.

        Reports that are repeated, late, or of an incarnation that holds nothing change nothing; see `given`.
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
        """Positions that an incarnation was granted, as far as the table knows.

        What it finishes beyond them was granted by a chief whose journal is lost, and is granted again.
        """
        holder = self._holders.get(worker)
        return holder.given if holder is not None and holder.incarnation == incarnation else 0

    def release(self, worker: int, incarnation: int) -> None:
        """Takes back what an incarnation, or an older one, has not finished: it is gone.

        If it is not, it goes on with new leases.
        """
        holder = self._holders.get(worker)
        if holder is None or holder.incarnation > incarnation:
            return
        for lease in holder.leases:
            bisect.insort(self._returned, lease)
        holder.leases.clear()
        holder.done, holder.released = holder.given, True

    @property
    def finished_in_epoch(self) -> int:
        """Positions of `epoch` that are finished."""
        return self._next - self._num_open(self.epoch)

    @property
    def epochs(self) -> float:
        """Positions finished, over all epochs, in epochs."""
        granted = self.epoch * self.num_records + self._next
        return (granted - self._num_open()) / self.num_records

    def _holder(self, worker: int, incarnation: int) -> _Holder:
        """The entry of an incarnation, in place of an older one's."""
        holder = self._holders.get(worker)
        if holder is not None and incarnation < holder.incarnation:
            raise WorkerSuperseded(f"worker {worker} has a newer incarnation, which holds its leases")
        if holder is None or incarnation > holder.incarnation:
            if holder is not None:
                self.release(worker, holder.incarnation)
            holder = self._holders[worker] = _Holder(incarnation)
        return holder

    def _take(self) -> Lease:
        if self._returned:
            lease = self._returned.pop(0)
            self.records_repeated += lease.num_records
            return lease
        if self._next == self.num_records:
            self.epoch, self._next = self.epoch + 1, 0
        start, self._next = self._next, min(self._next + self.lease_records, self.num_records)
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
