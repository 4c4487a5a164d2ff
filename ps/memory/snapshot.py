"""Copy-on-write snapshots of a shard's vectors, read piece by piece while pushes continue.

A copy of everything would double a shard's memory and block pushes while it is made. Instead, a push that is about to
change a block that has not been read yet copies that block first, in every vector that is still to be read. So a push
waits for one block at most, and a snapshot takes as much memory as pushes change before it is read.

Threads: the reader iterates in its own; the lock passed in guards `preserve` and every read of the vectors.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping

import numpy as np

from downpour.ps.layout.chunks import BLOCK_ELEMENTS


class Snapshot:
    """Every vector of a shard at the moment of construction, which needs the lock held.

    Args:
        vectors: [n] float32 each, by name, which pushes change in place.
        records: Other arrays of that moment, by name; copied.
        lock: Held by callers of `preserve`, and while the vectors are read.

    Attributes:
        names: Of the vectors, in the order in which they are read.
        size: n.
        records: As given, copied.
    """

    def __init__(
        self, vectors: Mapping[str, np.ndarray], records: Mapping[str, np.ndarray], lock: threading.Lock
    ) -> None:
        self.names = list(vectors)
        self.size = next(iter(vectors.values())).size
        self.records = {name: record.copy() for name, record in records.items()}
        self._vectors = list(vectors.values())
        self._num_blocks = -(-self.size // BLOCK_ELEMENTS)
        self._lock = lock
        self._saved: dict[tuple[int, int], np.ndarray] = {}  # by vector and block
        self._next = (0, 0)  # vector and block that are read next

    def preserve(self, start: int, stop: int) -> None:
        """Keeps elements [start, stop) as they are; called with the lock held, before they change."""
        for block in range(start // BLOCK_ELEMENTS, -(-stop // BLOCK_ELEMENTS)):
            for vector in range(self._next[0], len(self._vectors)):
                at = vector, block
                if at >= self._next and at not in self._saved:
                    self._saved[at] = self._copy(*at)

    def pieces(self) -> Iterator[np.ndarray]:
        """Copies of every vector from its first element to its last, one vector after another; may be read once."""
        for vector in range(len(self._vectors)):
            for block in range(self._num_blocks):
                with self._lock:
                    saved = self._saved.pop((vector, block), None)
                    piece = self._copy(vector, block) if saved is None else saved
                    self._next = (vector, block + 1)
                yield piece

    def _copy(self, vector: int, block: int) -> np.ndarray:
        start = block * BLOCK_ELEMENTS
        return self._vectors[vector][start : start + BLOCK_ELEMENTS].copy()
