"""A snapshot is of one moment, whatever pushes do while it is read."""

from __future__ import annotations

import threading

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from downpour.ps.layout.chunks import BLOCK_ELEMENTS
from downpour.ps.memory.snapshot import Snapshot

SIZE = 3 * BLOCK_ELEMENTS + 5


@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_pushes_between_pieces_do_not_show(data: st.DataObject) -> None:
    vectors = {"a": np.zeros(SIZE, np.float32), "b": np.ones(SIZE, np.float32)}
    records = {"counters": np.array([3, 4], np.uint64)}
    lock = threading.Lock()
    snapshot = Snapshot(vectors, records, lock)
    records["counters"][:] = 0
    read = []
    pieces = snapshot.pieces()
    for _ in range(8):
        start = data.draw(st.integers(0, SIZE - 1))
        stop = data.draw(st.integers(start + 1, SIZE))
        with lock:
            snapshot.preserve(start, stop)
            for vector in vectors.values():
                vector[start:stop] += 7
        read.append(next(pieces))
    assert next(pieces, None) is None
    a, b = np.split(np.concatenate(read), 2)
    assert (a == 0).all() and (b == 1).all()
    assert snapshot.records["counters"].tolist() == [3, 4]


def test_what_has_been_read_is_not_kept() -> None:
    snapshot = Snapshot({"a": np.zeros(SIZE, np.float32), "b": np.zeros(SIZE, np.float32)}, {}, threading.Lock())
    pieces = snapshot.pieces()
    next(pieces)
    snapshot.preserve(0, BLOCK_ELEMENTS)
    assert list(snapshot._saved) == [(1, 0)]
    snapshot.preserve(0, BLOCK_ELEMENTS + 1)
    assert list(snapshot._saved) == [(1, 0), (0, 1), (1, 1)]
