"""Sparse gradients: some runs of consecutive elements have values, and all other elements are zero.

Both ends use it: a worker makes a chunk dense where that takes fewer bytes, a shard as it applies the chunk. Threads:
any; these functions keep no state.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numba import types

from downpour.compiled import declared_for

_NUMBERS, _FIRST = types.int64[::1], types.intp
# Values of float32, or 16 bits of another wire dtype. They may be a view of an immutable message, at any byte.
_VALUES = [types.Array(kind, 1, "C", readonly=True, aligned=False) for kind in (types.float32, types.uint16)]


@dataclass(frozen=True)
class Runs:
    """Where the runs are; they are in ascending order, disjoint and not empty.

    Attributes:
        starts: [n] int64, first elements.
        stops: [n] int64, one past the last elements.
    """

    starts: np.ndarray
    stops: np.ndarray

    @cached_property
    def firsts(self) -> np.ndarray:
        """[n + 1] int64: indices of the runs' first values among all values, then the number of values."""
        return np.concatenate([[0], np.cumsum(self.stops - self.starts)])

    def merged(self) -> Runs:
        """The same elements in as few runs as possible."""
        if not self.starts.size:
            return self
        apart = self.starts[1:] != self.stops[:-1]
        return Runs(self.starts[np.append(True, apart)], self.stops[np.append(apart, True)])

    def encoded(self) -> np.ndarray:
        """[n, 2] uint32: first element and length of each run, as chunks carry them."""
        return np.stack([self.starts, self.stops - self.starts], 1).astype("<u4")

    def make_dense(self, values: np.ndarray, first: int, out: np.ndarray) -> None:
        """Writes elements [first, first + n): those of runs from `values`, zeros elsewhere.

        Args:
            values: All values of all runs, of float32 or of a wire dtype.
            first: First element.
            out: [n] of the same dtype.
        """
        begin = np.searchsorted(self.stops, first, "right")
        end = np.searchsorted(self.starts, first + out.size, "left")
        if values.dtype.itemsize == 2:
            values, out = values.view(np.uint16), out.view(np.uint16)
        fill()(self.starts[begin:end], self.stops[begin:end], self.firsts[begin:end], values, first, out)


@declared_for([types.void(*[_NUMBERS] * 3, v, _FIRST, v.dtype[::1]) for v in _VALUES])
def fill(starts, stops, firsts, values, first, out):  # type: ignore[no-untyped-def]
    """Writes elements [first, first + n) of runs, all of which reach into them; see `Runs.make_dense`."""
    done = 0
    for i in range(starts.size):
        begin, end = max(starts[i] - first, 0), min(stops[i] - first, out.size)
        at = firsts[i] + begin - (starts[i] - first)
        out[done:begin] = 0
        for j in range(end - begin):
            out[begin + j] = values[at + j]
        done = end
    out[done:] = 0
