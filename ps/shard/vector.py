"""A shard's vector as pulls read it, chunk by chunk, while pushes change it.

Threads: any number may read. Each region's lock guards its part; frozen elements need none.
"""

from __future__ import annotations

import bisect
import contextlib
from collections.abc import Iterator

import numpy as np

from downpour.proto import codec
from downpour.proto.numerics import convert
from downpour.ps.apply.regions import Region, regions_of
from downpour.ps.layout.chunks import chunks_of_pull
from downpour.ps.memory.arena import Arena
from downpour.ps.memory.ledger import COUNTERS
from downpour.ps.shard.ahead import Ahead
from downpour.ps.shard.encodings import Encodings

_VERSION = COUNTERS.fields["version"][1] // 8  # type: ignore[index]  # in words


class Vector:
    """The elements of one shard: trained ones first, then statistics, then frozen ones.

    Args:
        arena: Arena of the shard, marked complete.
        ahead: Moves what pulls read, under the treatment `Lookahead`.

    Attributes:
        size: Number of all elements.
        num_trained: Number of elements that the update rule changes.
        num_pushed: Number of these and of statistics.
        parameters: [size] float32, never moved.
        regions: Regions that pushes change, in order: one for each chunk of a push.
        groups: Factored variables, by their first element.
        uncut: Ranges of elements that are updated in one piece.
    """

    def __init__(self, arena: Arena, ahead: Ahead | None = None) -> None:
        layout, index = arena.layout, arena.specification.shard
        self.parameters = arena.parameters
        self.size = arena.parameters.size
        self.num_trained = layout.num_trained(index)
        self.num_pushed = layout.num_pushed(index)
        self.groups = {group.start: group for group in layout.factored(index)}
        self.uncut = layout.uncut(index)
        self.regions = regions_of(arena.chunks, list(self.groups.values()), self.uncut)
        self._region_stops = [region.stop for region in self.regions]
        self._chunks = arena.chunks
        self._counters = arena.counters_record.view("<u8").data  # as integers
        self._encodings = Encodings()
        self._ahead = ahead

    @property
    def version(self) -> int:
        """Number of updates applied. Read without a lock: one aligned 8-byte word."""
        return self._counters[_VERSION]

    def cut(self, start: int, stop: int) -> Iterator[tuple[int, int]]:
        """Cuts [start, stop) into chunks for `read`, none of which crosses the border of a region."""
        return chunks_of_pull(self._chunks, self.size, start, stop)

    def values(self, start: int, stop: int) -> np.ndarray:
        """Elements [start, stop) of one chunk of `cut` as pulls read them, float32; valid within `unchanged`."""
        return self._ahead.values(start, stop) if self._ahead else self.parameters[start:stop]

    def read(self, start: int, stop: int, out: np.ndarray) -> None:
        """Writes elements [start, stop), one chunk of `cut`, into `out` of a wire dtype."""
        with self.unchanged(start):
            convert.to_wire(self.values(start, stop), out)

    def encoded(self, start: int, stop: int, wire: int) -> np.ndarray:
        """Returns elements [start, stop), one chunk of `cut`, in a wire codec. Read-only: pulls may share the array."""
        with self.unchanged(start):
            moment = self.region_at(start).num_changes if start < self.num_pushed else 0
            values = self._encodings.get((start, stop, wire), moment)
            if values is None:
                values = np.empty(stop - start, codec.WIRE_DTYPES[wire])
                convert.to_wire(self.values(start, stop), values)
                self._encodings.keep((start, stop, wire), moment, values)
            return values

    def unchanged(self, start: int) -> contextlib.AbstractContextManager[object]:
        """Blocks pushes from changing the chunk of `cut` at `start` while the block lasts."""
        return self.region_at(start).lock if start < self.num_pushed else contextlib.nullcontext()

    @contextlib.contextmanager
    def all_unchanged(self) -> Iterator[None]:
        """Blocks changes of all elements while the block lasts."""
        with contextlib.ExitStack() as locks:
            for region in self.regions:
                locks.enter_context(region.lock)
            yield

    def region_at(self, element: int) -> Region:
        """The region of an element, which must be below `num_pushed`."""
        return self.regions[bisect.bisect_right(self._region_stops, element)]
