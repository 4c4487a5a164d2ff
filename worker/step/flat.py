"""Flat vectors of shards to tensors of variables and back, as operations of a traced step. TensorFlow is allowed here.

The wire layout is the signature of a compiled step: what is pulled enters the graph as one vector a shard, and what is
pushed leaves it so. No Python loop over variables runs in a step.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import tensorflow as tf

from downpour.ps.layout import Layout, Range


class FlatVectors:
    """Converts between vectors and variables of a layout; variables are named by their number in it."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout

    def split(self, vectors: Sequence[tf.Tensor], *kinds: str) -> dict[int, tf.Tensor]:
        """Converts one flat vector a shard, of the elements of these kinds, to one tensor a variable, by number."""
        slices: dict[int, list[tuple[Range, tf.Tensor]]] = {}
        for vector, ranges in zip(vectors, self._ranges(*kinds), strict=True):
            for r, part in zip(ranges, tf.split(vector, [r.size for r in ranges]) if ranges else [], strict=True):
                slices.setdefault(r.variable, []).append((r, tf.reshape(part, self._layout.shape(r))))
        variables = {}
        for number, pieces in slices.items():
            parts = sorted(pieces, key=lambda piece: piece[0].begin)
            tensors = [tensor for _, tensor in parts]
            variables[number] = tensors[0] if len(tensors) == 1 else tf.concat(tensors, parts[0][0].axis)
        return variables

    def join(self, values: Mapping[int, tf.Tensor], kind: str) -> list[tf.Tensor]:
        """Converts one tensor a variable of this kind, by number, to one flat vector a shard; inverts `split`.

        Variables that have no value are left out.
        """
        slices: dict[tuple[int, int], tf.Tensor] = {}
        for number, value in values.items():
            ranges = sorted((r for r in self._layout.ranges if r.variable == number), key=lambda r: r.begin)
            parts = tf.split(value, [r.stop - r.begin for r in ranges], ranges[0].axis) if len(ranges) > 1 else [value]
            slices.update({(number, r.begin): part for r, part in zip(ranges, parts, strict=True)})
        return [
            tf.concat([tf.reshape(slices[r.variable, r.begin], [-1]) for r in ranges], 0) if ranges else tf.zeros([0])
            for ranges in ([r for r in of_shard if r.variable in values] for of_shard in self._ranges(kind))
        ]

    def _ranges(self, *kinds: str) -> list[list[Range]]:
        return [[r for r in rs if self._layout.variables[r.variable].kind in kinds] for rs in self._layout.by_shard]


def rows_once(slices: tf.IndexedSlices) -> list[tf.Tensor]:
    """Returns the indices that slices name, each once, and the sums of their rows, in the order of first appearance."""
    indices, places = tf.unique(slices.indices)
    return [indices, tf.math.unsorted_segment_sum(slices.values, places, tf.size(indices))]
