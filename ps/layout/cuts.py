"""Cuts variables into slices. Pure.

A constraint with norms needs all elements of a norm at once, and one change of the undo log covers one piece. So a
slice of such a variable holds whole norms, is no longer than a piece, and no chunk or piece ends within it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from downpour.ps.layout.chunks import PIECE_ELEMENTS
from downpour.ps.policy.constraints import Constraint

Cut = tuple[int, int, int]  # of a variable: axis, begin, stop


@dataclass(frozen=True)
class Slicing:
    """Cuts every variable whose name matches into slices along one axis, equal to within one row.

    Attributes:
        pattern: `fnmatch` pattern over variable names, for example `head/*`.
        num_slices: Number of slices.
        axis: The axis to cut; negative counts from the last.
    """

    pattern: str
    num_slices: int
    axis: int = -1


def whole(shape: tuple[int, ...]) -> Cut:
    """A whole variable, as one cut along axis 0."""
    return 0, 0, shape[0] if shape else 1


def num_elements(shape: tuple[int, ...], cut: Cut) -> int:
    """Number of elements in a slice."""
    axis, begin, stop = cut
    return math.prod(shape) // max(shape[axis], 1) * (stop - begin) if shape else 1


def sliced(name: str, shape: tuple[int, ...], rule: Slicing) -> list[Cut]:
    """Cuts a variable into the slices of a rule.

    Raises:
        ValueError: The variable lacks the axis, or has fewer columns than slices.
    """
    rank = len(shape)
    if not -rank <= rule.axis < rank:
        raise ValueError(f"slicing {rule.pattern!r} cuts axis {rule.axis}, but {name} has {rank} axes")
    axis = rule.axis % rank
    if not 1 <= rule.num_slices <= shape[axis]:
        raise ValueError(
            f"slicing {rule.pattern!r} asks for {rule.num_slices} slices of {name}, whose axis {axis} has "
            f"{shape[axis]} columns; give 1 to {shape[axis]}"
        )
    return _evenly((axis, 0, shape[axis]), rule.num_slices)


def with_whole_norms(name: str, shape: tuple[int, ...], cut: Cut, constraint: Constraint) -> list[Cut]:
    """Cuts a slice of a constrained variable into slices that each fit a piece and hold whole norms.

    Args:
        name: Name of the variable.
        shape: Shape of the whole variable.
        cut: The slice.
        constraint: The variable's; its norms can be computed within slices along an axis that it does not sum over.

    Raises:
        ValueError: The variable lacks an axis, or is cut along one that a norm sums over, or no cut along one axis
            yields slices that fit a piece.
    """
    axes, (axis, begin, stop) = constraint.axes, cut
    if not axes:
        return [cut]
    free = [other for other in range(len(shape)) if other not in axes]
    if axes[-1] >= len(shape):
        raise ValueError(f"{name} {list(shape)} has no axis {axes[-1]}, over which its constraint {constraint} sums")
    is_slice = stop - begin < shape[axis]
    if is_slice and axis in axes:
        raise ValueError(
            f"{name} {list(shape)} is sliced along axis {axis}, over which its constraint {constraint} sums; "
            f"{f'slice it along axis {_one_of(free)} or ' if free else ''}leave it whole, or set constraint=None"
        )
    if num_elements(shape, cut) <= PIECE_ELEMENTS:
        return [cut]
    columns = {other: PIECE_ELEMENTS // num_elements(shape, (other, 0, 1)) for other in free}  # that fit a piece
    possible = sorted((other for other in free if columns[other]), key=lambda other: -shape[other])
    if is_slice and axis in possible:
        return _evenly(cut, -(-(stop - begin) // columns[axis]))
    if not is_slice and possible:
        axis = possible[0]
        return _evenly((axis, 0, shape[axis]), -(-shape[axis] // columns[axis]))
    raise ValueError(
        f"{name} {list(shape)}: its constraint {constraint} needs slices of more elements than the "
        f"{PIECE_ELEMENTS:,} that a shard updates at a time; "
        f"{f'slice it along axis {_one_of(possible)}, ' if possible else ''}use a smaller layer or set constraint=None"
    )


def may_be_factored(constraint: Constraint) -> bool:
    """Whether a matrix with this constraint may be factored, for which it is cut along axis 1."""
    return 1 not in constraint.axes


def _evenly(cut: Cut, num_slices: int) -> list[Cut]:
    """Cuts a slice along its own axis into `num_slices`, equal to within one column."""
    axis, first, last = cut
    small, larger = divmod(last - first, num_slices)
    bounds = [first + i * small + min(i, larger) for i in range(num_slices + 1)]
    return [(axis, begin, stop) for begin, stop in itertools.pairwise(bounds)]


def _one_of(axes: Sequence[int]) -> str:
    return " or ".join(map(str, axes))
