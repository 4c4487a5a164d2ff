"""A shard's vectors as they were at one moment, read block by block while pushes go on.

A copy of everything would double a shard's memory and hold pushes up while it is made. Instead, a push that is about
to change a block which has not been read yet copies that block first. So a push waits for one block at most, and a
snapshot takes as much memory as pushes change before the reader gets there.

Threads: the reader iterates in its own; the lock passed in guards `preserve` and every look at the vectors.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence

import numpy as np

BLOCK_ELEMENTS = 1 << 20

Block = tuple[int, list[np.ndarray]]


class Snapshot:
    """Every vector of a shard at the moment this is made; made with the lock held.

    Args:
        vectors: [n] float32 each, which pushes change in place.
        version: Of the shard.
        lock: Held by whoever changes the vectors.
    """

    def __init__(self, vectors: Sequence[np.ndarray], version: int, lock: threading.Lock) -> None:
        self.version = version
        self.size = vectors[0].size
        self._vectors = vectors
        self._lock = lock
        self._saved: dict[int, list[np.ndarray]] = {}
        self._num_read = 0

    def preserve(self, start: int, stop: int) -> None:
        """Keeps elements [start, stop) as they are; called with the lock held, before they change."""
        for block in range(max(start // BLOCK_ELEMENTS, self._num_read), -(-stop // BLOCK_ELEMENTS)):
            if block not in self._saved:
                self._saved[block] = self._copy(block)

    def blocks(self) -> Iterator[Block]:
        """From the first element to the last: (start, one copied piece of each vector), once."""
        for block in range(-(-self.size // BLOCK_ELEMENTS)):
            with self._lock:
                saved = self._saved.pop(block, None)
                pieces = self._copy(block) if saved is None else saved
                self._num_read = block + 1
            yield block * BLOCK_ELEMENTS, pieces

    def _copy(self, block: int) -> list[np.ndarray]:
        start = block * BLOCK_ELEMENTS
        return [vector[start : start + BLOCK_ELEMENTS].copy() for vector in self._vectors]
