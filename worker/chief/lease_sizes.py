"""How long leases are: about half a second of their worker's training. Pure: no clock.

A lease costs the chief a call and a write of its journal, so a worker of fast steps gets longer leases. Towards the end
of an epoch they become shorter again, so that workers end it at about the same time (guided self-scheduling:
Polychronopoulos and Kuck 1987).
"""

from __future__ import annotations

from dataclasses import dataclass, field

from downpour.model.data.order import Lease
from downpour.worker.chief.leases import LeaseTable

_LASTS_S = 0.5  # within the second for which a dead worker's positions may be trained on again
_GROWTH = 4  # of one lease to the next, at most


@dataclass(frozen=True)
class _Granted:
    """The newest lease of a worker: its number, its positions, and when it was granted."""

    number: int
    records: int
    at_s: float


@dataclass
class LeaseSizes:
    """The lengths of every worker's leases, from how long they last."""

    _newest: dict[int, _Granted] = field(default_factory=dict)

    def grant(self, table: LeaseTable, worker: int, incarnation: int, number: int, fair: int, now_s: float) -> Lease:
        """Grants a lease that is as long as the worker's should be, and at most `fair`.

        Args:
            table: The positions; see `LeaseTable.grant`.
            worker: Index of the worker.
            incarnation: Incarnation of its process.
            number: Number of the lease, from 0 for each incarnation.
            fair: Positions that it has at most: a fair part of what the epoch has left.
            now_s: The time.
        """
        lease = table.grant(worker, incarnation, number, min(self.wanted(worker, number, now_s), fair))
        self.granted(worker, number, lease.num_records, now_s)
        return lease

    def wanted(self, worker: int, number: int, now_s: float) -> int:
        """Returns the positions that the worker's next lease should have; 0 for as few as possible.

        Args:
            worker: Index of the worker.
            number: Number of the lease, from 0 for each incarnation.
            now_s: The time.
        """
        newest = self._newest.get(worker)
        if newest is None or number != newest.number + 1:
            return 0
        lasted_s = max(now_s - newest.at_s, _LASTS_S / _GROWTH)
        return int(newest.records * min(_GROWTH, _LASTS_S / lasted_s))

    def granted(self, worker: int, number: int, records: int, now_s: float) -> None:
        """Records a lease, once or again after a lost reply."""
        newest = self._newest.get(worker)
        if newest is None or newest.number != number:
            self._newest[worker] = _Granted(number, records, now_s)
