"""A snapshot is of one moment, whatever pushes do while it is read."""

from __future__ import annotations

import threading

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from downpour.ps.snapshot import BLOCK_ELEMENTS, Snapshot

SIZE = 3 * BLOCK_ELEMENTS + 5


@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_pushes_between_blocks_do_not_show(data: st.DataObject) -> None:
    vectors = [np.zeros(SIZE, np.float32), np.ones(SIZE, np.float32)]
    lock = threading.Lock()
    snapshot = Snapshot(vectors, 4, lock)
    read = [np.full(SIZE, np.nan, np.float32) for _ in vectors]
    blocks = snapshot.blocks()
    for _ in range(4):
        start = data.draw(st.integers(0, SIZE - 1))
        stop = data.draw(st.integers(start + 1, SIZE))
        with lock:
            snapshot.preserve(start, stop)
            for vector in vectors:
                vector[start:stop] += 7
        at, pieces = next(blocks)
        for vector, piece in zip(read, pieces, strict=True):
            vector[at : at + piece.size] = piece
    assert next(blocks, None) is None
    assert (read[0] == 0).all() and (read[1] == 1).all()


def test_what_has_been_read_is_not_kept() -> None:
    vectors = [np.zeros(SIZE, np.float32)]
    snapshot = Snapshot(vectors, 0, threading.Lock())
    blocks = snapshot.blocks()
    next(blocks)
    snapshot.preserve(0, BLOCK_ELEMENTS)
    assert not snapshot._saved
    snapshot.preserve(0, BLOCK_ELEMENTS + 1)
    assert list(snapshot._saved) == [1]
