"""Cache of encoded chunks: a pull reuses what the pull before encoded.

Pushes are applied in groups (`downpour.ps.apply.admission`), and the pulls that follow a group read one state: at the
paper's shape, with four workers, 72 % of all pulled chunks had not changed since the pull before. Encoding reads four
bytes of memory an element and writes two; sending a cached chunk reads two.

Threads: any may call; a lock of its own is held briefly.
"""

from __future__ import annotations

import threading

import numpy as np

# A shard at the paper's shape has 9 MB in bfloat16. In larger shards pulls share what they read soon after each other.
_MOST_BYTES = 12 << 20

Key = tuple[int, int, int]  # first element, one past the last, wire codec


class Encodings:
    """Encoded chunks, of which the least recently encoded are evicted.

    Args:
        most_bytes: Most bytes cached; evicted chunks that a message still refers to are not counted.
    """

    def __init__(self, most_bytes: int = _MOST_BYTES) -> None:
        self._most_bytes = most_bytes
        self._lock = threading.Lock()
        self._kept: dict[Key, tuple[int, np.ndarray]] = {}  # oldest first
        self._num_bytes = 0

    def get(self, key: Key, moment: int) -> np.ndarray | None:
        """A chunk as encoded when its elements had changed `moment` times; None if that is not cached."""
        kept_moment, values = self._kept.get(key, (-1, None))
        return values if kept_moment == moment else None

    def keep(self, key: Key, moment: int, values: np.ndarray) -> None:
        """Caches an encoded chunk, which must not change any longer, in place of an older encoding of it."""
        with self._lock:
            self._forget(key)
            self._kept[key] = moment, values
            self._num_bytes += values.nbytes
            while self._num_bytes > self._most_bytes:
                self._forget(next(iter(self._kept)))

    def _forget(self, key: Key) -> None:
        if key in self._kept:
            self._num_bytes -= self._kept.pop(key)[1].nbytes
