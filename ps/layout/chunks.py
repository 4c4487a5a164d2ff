"""Cuts a shard's vector into what is sent, updated or stored at a time; where it is cut is decided here only. Pure.

    chunk       message of a push, a pull or initial values; at most `codec.CHUNK_ELEMENTS` unless it has factors
    difference  chunk of a pull as differences (`downpour.ps.shard.publication`); as many bytes as a bfloat16 chunk
    piece       part of a push's chunk that is updated at a time; at most PIECE_ELEMENTS where nothing needs more
    block       part of a vector that a snapshot copies, and a checkpoint's manifest has a checksum of

A part [start, stop) of a vector is given by its first element and the one past its last.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from downpour.proto import codec

Part = tuple[int, int]

# 256 KB of gradient; with parameters and two slots it fills a second-level cache of 1 MB.
PIECE_ELEMENTS = 1 << 17
BLOCK_ELEMENTS = 1 << 20  # 4 MB; part of the format of checkpoints
# By the codec of differences; a multiple of `codec.BLOCK`.
DIFFERENCE_ELEMENTS: dict[int, int] = {codec.INT8: 2 * codec.CHUNK_ELEMENTS, codec.INT4: 4 * codec.CHUNK_ELEMENTS}


def chunks_of_push(factored: Sequence[Part], num_trained: int, num_pushed: int, uncut: Sequence[Part]) -> list[Part]:
    """Chunks of a push: each factored variable, the other trained elements, the statistics.

    Args:
        factored: Parts of factored variables, the first of the vector.
        num_trained: Number of trained elements, factored ones included; statistics follow them.
        num_pushed: Number of these and of statistics.
        uncut: Parts within which no chunk ends; see `runs`.
    """
    dense = runs(factored[-1][1] if factored else 0, num_trained, codec.CHUNK_ELEMENTS, uncut)
    return [*factored, *dense, *codec.split(num_trained, num_pushed)]


def chunks_of_pull(pushed: Sequence[Part], size: int, start: int, stop: int) -> Iterator[Part]:
    """Chunks of a pull of [start, stop): within chunks of a push, since each of those has a lock, and what follows.

    Args:
        pushed: Chunks of a push.
        size: Number of elements of the vector.
        start: First element.
        stop: One past the last.
    """
    rest = (pushed[-1][1] if pushed else 0), size
    for first, end in (*pushed, rest):
        yield from codec.split(max(start, first), min(stop, end))


def chunks_of_values(size: int) -> Iterator[Part]:
    """Chunks of all elements, as initial values and first publications are sent."""
    return codec.split(0, size)


def chunks_of_differences(wire: int, num_trained: int) -> Iterator[Part]:
    """Chunks of differences of all trained elements, in INT8 or INT4."""
    return runs(0, num_trained, DIFFERENCE_ELEMENTS[wire])


def pieces_of_range(start: int, stop: int, uncut: Sequence[Part] = ()) -> list[Part]:
    """Pieces of a chunk, none of which ends within a part of `uncut`."""
    return list(runs(start, stop, PIECE_ELEMENTS, uncut))


def pieces_of_factors(ranges: Iterable[Part], num_inputs: int, uncut: Sequence[Part] = ()) -> list[Part]:
    """Pieces of a factored variable: whole rows of each range, at least one; a range of `uncut` is one piece.

    Args:
        ranges: Parts of the variable: [num_inputs, some outputs] each.
        num_inputs: Number of rows.
        uncut: Parts that are updated at once.
    """
    pieces = []
    for start, stop in ranges:
        width = (stop - start) // num_inputs
        rows = max(1, PIECE_ELEMENTS // width) if (start, stop) not in uncut else num_inputs
        pieces += list(runs(start, stop, rows * width))
    return pieces


def runs(start: int, stop: int, longest: int, uncut: Sequence[Part] = ()) -> Iterator[Part]:
    """Cuts [start, stop) into consecutive runs of at most `longest`.

    Args:
        start: First element.
        stop: One past the last.
        longest: Most elements of a run.
        uncut: Disjoint parts of [start, stop) within which no run ends; one longer than `longest` is a run of its own.
    """
    while start < stop:
        end = min(start + longest, stop)
        for begin, after in uncut:
            if begin < end < after:
                end = begin if begin > start else after
                break
        yield start, end
        start = end
