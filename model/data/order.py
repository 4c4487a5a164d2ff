"""The order in which an epoch's records are trained on, and the leases that cut it into pieces.

The order is a function of the number of records, the seed and the epoch, never of the number of workers: any worker
that trains on positions [start, stop) of an epoch reads the same records and augments them equally (`augmentation`).
Pure numpy; each iterating thread has an `Order` of its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

_WINDOW_BLOCKS = 16
_KEPT_EPOCHS = 2


@dataclass(frozen=True, order=True)
class Lease:
    """Positions [start, stop) of an epoch's order, for one worker to train on."""

    epoch: int
    start: int
    stop: int

    @property
    def num_records(self) -> int:
        """Number of positions."""
        return self.stop - self.start


class Place(NamedTuple):
    """One position of an epoch, and the number of the record at it."""

    epoch: int
    position: int
    record: int


class Order:
    """The order of every epoch's records.

    Blocks of consecutive records are permuted. With blocks of more than one, records are then shuffled inside windows
    of 16 blocks, so that those read at about the same time are in few places of the disk. Windows begin at multiples
    of their length, so the order does not depend on how leases are cut. The last block may be short.

    Args:
        num_records: Records of an epoch; at least 1.
        seed: Another seed gives another order; at least 0.
        block: Consecutive records that stay in one window; 1 shuffles all records.
        shuffle: If False, position p of every epoch has record p.
        chosen: [num_records] numbers of the records that epochs are made of, ascending; None for the first ones.
    """

    def __init__(
        self,
        num_records: int,
        seed: int,
        block: int = 1,
        *,
        shuffle: bool = True,
        chosen: NDArray[np.int64] | None = None,
    ) -> None:
        if num_records < 1 or seed < 0 or block < 1:
            raise ValueError(
                f"num_records is {num_records}, seed {seed} and block {block}; give at least 1 record, 0 and 1"
            )
        self._num_records = num_records
        self._seed = seed
        self._block = block
        self._shuffle = shuffle
        self._chosen = chosen
        self._num_blocks = -(-num_records // block)
        self._permutations: dict[int, NDArray[np.int64]] = {}

    def records(self, lease: Lease) -> NDArray[np.int64]:
        """[stop - start] numbers of the records at a lease's positions.

        Raises:
            ValueError: The positions are not within an epoch.
        """
        if not 0 <= lease.start <= lease.stop <= self._num_records:
            raise ValueError(
                f"positions {lease.start} to {lease.stop} are not within an epoch of {self._num_records} records; "
                "chief and workers count different records: give all of them the same data"
            )
        numbers = self._shuffled(lease) if self._shuffle else np.arange(lease.start, lease.stop)
        return numbers if self._chosen is None else self._chosen[numbers]

    def places(self, leases: Iterable[Lease]) -> Iterator[Place]:
        """Yields every position of the leases, in order."""
        for lease in leases:
            numbers = self.records(lease).tolist()
            for position, number in zip(range(lease.start, lease.stop), numbers, strict=True):
                yield Place(lease.epoch, position, number)

    def groups(self, leases: Iterable[Lease], size: int) -> Iterator[NDArray[np.int64]]:
        """Yields the numbers of the records at every position of the leases, in order, in groups of `size`.

        The last group may be short. A lease is taken when a group needs it.
        """
        parts = list[NDArray[np.int64]]()
        missing = size  # of the group that `parts` begins
        for lease in leases:
            numbers = self.records(lease)
            while len(numbers) >= missing:
                yield np.concatenate([*parts, numbers[:missing]])
                numbers, parts, missing = numbers[missing:], [], size
            if len(numbers):
                parts.append(numbers)
                missing -= len(numbers)
        if parts:
            yield np.concatenate(parts)

    def _shuffled(self, lease: Lease) -> NDArray[np.int64]:
        if self._block == 1:
            return self._permutation(lease.epoch)[lease.start : lease.stop]
        return self._in_blocks(lease.epoch, self._within_windows(lease))

    def _within_windows(self, lease: Lease) -> NDArray[np.int64]:
        """[stop - start] int64: the positions in the permuted blocks of a lease, after every window is shuffled."""
        length = self._block * _WINDOW_BLOCKS
        first, last = lease.start // length, -(-lease.stop // length)
        windows = [np.zeros(0, np.int64)]
        for window in range(first, last):
            size = min(length, self._num_records - window * length)
            rng = np.random.default_rng([self._seed, lease.epoch, 1 + window])
            windows.append(window * length + rng.permutation(size))
        return np.concatenate(windows)[lease.start - first * length : lease.stop - first * length]

    def _in_blocks(self, epoch: int, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Returns the records at positions of the permuted blocks."""
        permutation = self._permutation(epoch)
        # The short block shifts every position behind it by the number of records that it lacks.
        missing = self._num_blocks * self._block - self._num_records
        short = int(np.flatnonzero(permutation == self._num_blocks - 1)[0])
        behind = positions >= (short + 1) * self._block - missing
        places, offsets = np.divmod(positions + missing * behind, self._block)
        return permutation[places] * self._block + offsets

    def _permutation(self, epoch: int) -> NDArray[np.int64]:
        """[num_blocks] int64, of an epoch; the last few are cached, since leases of two epochs may alternate."""
        if epoch not in self._permutations:
            while len(self._permutations) >= _KEPT_EPOCHS:
                del self._permutations[min(self._permutations)]
            self._permutations[epoch] = np.random.default_rng([self._seed, epoch]).permutation(self._num_blocks)
        return self._permutations[epoch]


def augmentation(seed: int, epoch: int, position: int) -> np.random.Generator:
    """Random numbers that depend on these three alone, so every worker augments a record equally."""
    key = np.array([seed, epoch], np.uint64)
    counter = np.array([0, position, 0, 0], np.uint64)  # the first word counts up, apart for each position
    return np.random.Generator(np.random.Philox(key=key, counter=counter))


class Counted:
    """Counts the positions of the leases that a data source takes, to detect a source that ignores them.

    Args:
        leases: Leases for the source.
        source: Name of the source in messages.
    """

    def __init__(self, leases: Iterator[Lease], source: str) -> None:
        self._leases, self._source = leases, source
        self._positions = 0

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Lease:
        lease = next(self._leases)
        self._positions += lease.num_records
        return lease

    def check(self, position: int) -> None:
        """Raises `ValueError` when the batches have reached a position that is not leased.

        Args:
            position: `Batches.position` after the first batch or a later one.
        """
        if not 0 < position <= self._positions:
            raise ValueError(
                f"{self._source} is at position {position} and has taken leases of {self._positions} positions; "
                "`training(leases=)` must read the records that the leases name, and give Batches whose `position` "
                "counts them, or every worker trains on the same records in the same order"
            )


def forever(num_records: int, lease_records: int) -> Iterator[Lease]:
    """Yields leases of at most `lease_records` positions, epoch after epoch, for one worker without a chief."""
    epoch = 0
    while True:
        for start in range(0, num_records, lease_records):
            yield Lease(epoch, start, min(start + lease_records, num_records))
        epoch += 1
