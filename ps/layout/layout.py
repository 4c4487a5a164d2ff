"""Where every parameter is stored: variables -> slices -> ranges of the shards' flat vectors.

Pure and deterministic: from names, shapes, kinds and the number of shards every role computes the same layout on its
own. Every call carries its fingerprint, so a mismatch is refused before any number changes.

A shard's vector holds its ranges in this order: factored, other trained, statistics, frozen. Among the trained ones,
ranges with the same treatment (weight decays and rate) are adjacent, so that one kernel call covers a long span. A push
covers the trained ranges and the statistics, a pull the whole vector.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from downpour.ps.layout import cuts
from downpour.ps.layout.chunks import chunks_of_push
from downpour.ps.layout.cuts import Cut
from downpour.ps.policy import constraints
from downpour.ps.policy.constraints import Constraint

TRAINED = "trained"  # gradients go through the update rule
STATISTIC = "statistic"  # differences are added (batch norm's moving mean and variance)
FACTORED = "factored"  # trained; pushes carry the factors of its gradient, x^T d for y = x W
FROZEN = "frozen"  # pulled, never pushed, never updated

_KINDS = (FACTORED, TRAINED, STATISTIC, FROZEN)  # in their order in a shard's vector

_Treatment = tuple[str, float, float, float]  # kind, weight decay, decoupled decay, rate


@dataclass(frozen=True)
class Variable:
    """A layout's description of a variable.

    Attributes:
        name: Unique name.
        shape: Shape of the whole variable.
        kind: TRAINED, FACTORED, STATISTIC or FROZEN.
        weight_decay: L2 factor; this fraction of the parameter is added to the gradient.
        decoupled_decay: This fraction of the parameter, times the rate, is subtracted from it before the rule.
        rate: Multiplies the schedule's rate.
        constraint: Projection after each update. Not part of the treatment: a span may have several.
    """

    name: str
    shape: tuple[int, ...]
    kind: str = TRAINED
    weight_decay: float = 0.0
    decoupled_decay: float = 0.0
    rate: float = 1.0
    constraint: Constraint | None = None

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def is_trained(self) -> bool:
        """Whether gradients go through the update rule."""
        return self.kind in (TRAINED, FACTORED)

    @property
    def treatment(self) -> _Treatment:
        """Kind, decays and rate, which are the same throughout a span."""
        return self.kind, self.weight_decay, self.decoupled_decay, self.rate

    @property
    def canonical(self) -> list[Any]:
        """Entry in the layout's canonical form; decoupled decay, rate and constraint only where not the defaults."""
        plain = [self.name, list(self.shape), self.kind, self.weight_decay]
        more = [self.decoupled_decay, self.rate]
        if self.constraint:
            return [*plain, *more, constraints.canonical(self.constraint)]
        return plain if more == [0.0, 1.0] else plain + more


@dataclass(frozen=True)
class Rate:
    """Multiplies the learning rate of every variable whose name matches.

    Attributes:
        pattern: `fnmatch` pattern over variable names, for example `stem/*`.
        multiplier: Above 0; freeze variables that should not change.
    """

    pattern: str
    multiplier: float

    def __post_init__(self) -> None:
        if not 0 < self.multiplier < math.inf:
            raise ValueError(
                f"rates: multiplier of {self.pattern!r} is {self.multiplier}; give a number above 0, or name the "
                "pattern in `frozen`"
            )


@dataclass(frozen=True)
class Range:
    """A slice of a variable and its place: `variable[..., begin:stop, ...]` at `offset` of the shard's vector.

    Attributes:
        variable: Index into `Layout.variables`.
        axis: The axis that is cut; 0 for a variable that is whole.
        begin: First index along the axis.
        stop: One past the last index along the axis.
        shard: Index of the shard.
        offset: First element in the shard's vector.
        size: Number of elements.
    """

    variable: int
    axis: int
    begin: int
    stop: int
    shard: int
    offset: int
    size: int


@dataclass(frozen=True)
class Span:
    """Consecutive elements [start, stop) of a shard's vector with the same treatment; see `Variable`."""

    start: int
    stop: int
    kind: str
    weight_decay: float
    decoupled_decay: float
    rate: float

    @property
    def treatment(self) -> _Treatment:
        """See `Variable.treatment`."""
        return self.kind, self.weight_decay, self.decoupled_decay, self.rate


@dataclass(frozen=True)
class Factored:
    """A shard's ranges of one factored variable [num_inputs, outputs]: cut along the outputs, consecutive."""

    num_inputs: int
    ranges: tuple[Range, ...]

    @property
    def start(self) -> int:
        """First element in the shard's vector."""
        return self.ranges[0].offset

    @property
    def size(self) -> int:
        """Number of elements in all its ranges."""
        return sum(r.size for r in self.ranges)

    @property
    def num_outputs(self) -> int:
        """Number of columns in all its ranges."""
        return self.size // self.num_inputs


@dataclass(frozen=True)
class Layout:
    """Variables, and the shard and offset of every range. Made by `plan` or `from_canonical`."""

    variables: tuple[Variable, ...]
    num_shards: int
    ranges: tuple[Range, ...] = field(repr=False)

    @cached_property
    def canonical(self) -> str:
        """The JSON text whose SHA-256 is the fingerprint. It omits offsets, which follow from the order."""
        return json.dumps(
            {
                "num_shards": self.num_shards,
                "variables": [v.canonical for v in self.variables],
                "ranges": [[r.variable, r.axis, r.begin, r.stop, r.shard] for r in self.ranges],
            },
            separators=(",", ":"),
        )

    @cached_property
    def fingerprint(self) -> bytes:
        """SHA-256 of the canonical form, 32 bytes."""
        return hashlib.sha256(self.canonical.encode()).digest()

    @cached_property
    def by_shard(self) -> tuple[tuple[Range, ...], ...]:
        """Each shard's ranges in the order of their offsets."""
        shards: list[list[Range]] = [[] for _ in range(self.num_shards)]
        for r in self.ranges:
            shards[r.shard].append(r)
        return tuple(map(tuple, shards))

    def size(self, shard: int) -> int:
        """Number of elements in a shard's vector."""
        return sum(r.size for r in self.by_shard[shard])

    def num_trained(self, shard: int) -> int:
        """Number of trained elements in a shard's vector; the statistics follow them."""
        return sum(r.size for r in self.by_shard[shard] if self.variables[r.variable].is_trained)

    def num_factored(self, shard: int) -> int:
        """Number of factored elements in a shard's vector; they are the first."""
        return sum(group.size for group in self.factored(shard))

    def factored(self, shard: int) -> list[Factored]:
        """The factored variables of a shard, in the order of their offsets."""
        groups = itertools.groupby(self.by_shard[shard], key=lambda r: r.variable)
        return [
            Factored(self.variables[number].shape[0], tuple(ranges))
            for number, ranges in groups
            if self.variables[number].kind == FACTORED
        ]

    def num_pushed(self, shard: int) -> int:
        """Number of elements that a push covers, trained and statistics; the frozen ones follow them."""
        return sum(r.size for r in self.by_shard[shard] if self.variables[r.variable].kind != FROZEN)

    def uncut(self, shard: int) -> list[tuple[int, int]]:
        """[start, stop) of each range that is updated in one piece, since its constraint has norms."""
        ranges = [(r, self.variables[r.variable].constraint) for r in self.by_shard[shard]]
        return [(r.offset, r.offset + r.size) for r, constraint in ranges if constraint and constraint.axes]

    def chunks(self, shard: int) -> list[tuple[int, int]]:
        """[start, stop) of the chunks of a push: each factored variable, the other trained ones, the statistics."""
        factored = [(group.start, group.start + group.size) for group in self.factored(shard)]
        return chunks_of_push(factored, self.num_trained(shard), self.num_pushed(shard), self.uncut(shard))

    def shape(self, r: Range) -> tuple[int, ...]:
        """Shape of the slice that a range holds."""
        shape = self.variables[r.variable].shape
        return shape and (*shape[: r.axis], r.stop - r.begin, *shape[r.axis + 1 :])

    def spans(self, shard: int) -> list[Span]:
        """The shard's vector as maximal runs of one treatment."""
        spans: list[Span] = []
        for r in self.by_shard[shard]:
            treatment = self.variables[r.variable].treatment
            if spans and spans[-1].treatment == treatment:
                spans[-1] = Span(spans[-1].start, r.offset + r.size, *treatment)
            else:
                spans.append(Span(r.offset, r.offset + r.size, *treatment))
        return spans

    def scatter(self, values: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Converts one array a variable to one flat float32 vector a shard."""
        vectors = [np.empty(self.size(shard), np.float32) for shard in range(self.num_shards)]
        for r in self.ranges:
            part = _cut(values[r.variable], r)
            vectors[r.shard][r.offset : r.offset + r.size] = part.reshape(-1)
        return vectors

    def gather(self, vectors: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Converts one flat vector a shard to one float32 array a variable; the inverse of `scatter`."""
        values = [np.empty(v.shape, np.float32) for v in self.variables]
        for r in self.ranges:
            part = _cut(values[r.variable], r)
            part[...] = vectors[r.shard][r.offset : r.offset + r.size].reshape(part.shape)
        return values

    @property
    def imbalance(self) -> float:
        """(Largest - smallest shard) / mean, in elements."""
        sizes = [self.size(shard) for shard in range(self.num_shards)]
        return (max(sizes) - min(sizes)) * self.num_shards / sum(sizes)

    def table(self) -> str:
        """The placement as text: a row a shard, the total, the imbalance and special treatments."""
        lines = [f"{'shard':>5}  {'slices':>6}  {'variables':>9}  {'parameters':>12}  {'MB':>8}  {'of mean':>8}"]
        total = sum(r.size for r in self.ranges)
        for shard, ranges in enumerate(self.by_shard):
            num_slices = sum(self._is_slice(r) for r in ranges)
            size = self.size(shard)
            lines.append(
                f"{shard:>5}  {num_slices:>6}  {len(ranges) - num_slices:>9}  {size:>12,}  {size * 4 / 1e6:>8.2f}"
                f"  {size * self.num_shards / total:>8.2%}"
            )
        lines.append(
            f"{'all':>5}  {sum(map(self._is_slice, self.ranges)):>6}  "
            f"{len(self.ranges) - sum(map(self._is_slice, self.ranges)):>9}  {total:>12,}  {total * 4 / 1e6:>8.2f}"
        )
        lines.append(f"imbalance {self.imbalance:.3%} (largest - smallest, of the mean); {self.fingerprint.hex()[:16]}")
        special: dict[str, list[int]] = {}
        for v in self.variables:
            if v.kind == FROZEN or len(v.canonical) > 4:
                special.setdefault(treatment_words(v), []).append(v.size)
        for words, sizes in sorted(special.items()):
            lines.append(f"{words}: {len(sizes)} variables, {sum(sizes):,} parameters")
        return "\n".join(lines)

    def _is_slice(self, r: Range) -> bool:
        shape = self.variables[r.variable].shape
        return bool(shape) and r.stop - r.begin < shape[r.axis]


@functools.lru_cache(maxsize=4)  # a role parses the same text repeatedly
def from_canonical(text: str) -> Layout:
    """The layout that a canonical form describes.

    Raises:
        ValueError: The text is not a canonical form.
    """
    try:
        document = json.loads(text)
        variables = tuple(_variable(*entry) for entry in document["variables"])
        placed = [(v, (axis, begin, stop), shard) for v, axis, begin, stop, shard in document["ranges"]]
        layout = assemble(variables, document["num_shards"], placed)
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise ValueError(f"not the canonical form of a layout: {error!r}") from None
    if layout.canonical != text:
        raise ValueError("not the canonical form of a layout: its ranges are not in order")
    return layout


def _variable(name: str, shape: list[int], kind: str, weight_decay: float, *more: Any) -> Variable:
    """The inverse of `Variable.canonical`."""
    decay_and_rate, constraint = more[:2], [constraints.from_canonical(*entry) for entry in more[2:]]
    return Variable(name, tuple(shape), kind, weight_decay, *decay_and_rate, *constraint)


def treatment_words(v: Variable) -> str:
    """Describes a variable's treatment and constraint in words."""
    words = f"{v.kind} with weight decay {v.weight_decay:g}"
    if len(v.canonical) > 4:
        words += f", decoupled decay {v.decoupled_decay:g}, rate times {v.rate:g}"
    return f"{words}, constraint {v.constraint}" if v.constraint else words


def assemble(variables: tuple[Variable, ...], num_shards: int, placed: list[tuple[int, Cut, int]]) -> Layout:
    """Assigns offsets to the placed slices, ordered by shard, kind, treatment and variable."""

    def order(one: tuple[int, Cut, int]) -> tuple[Any, ...]:
        number, cut, shard = one
        v = variables[number]
        return shard, _KINDS.index(v.kind), -v.weight_decay, -v.decoupled_decay, -v.rate, number, cut

    ranges: list[Range] = []
    offsets = [0] * num_shards
    for number, cut, shard in sorted(placed, key=order):
        size = cuts.num_elements(variables[number].shape, cut)
        ranges.append(Range(number, *cut, shard, offsets[shard], size))
        offsets[shard] += size
    return Layout(variables, num_shards, tuple(ranges))


def _cut(value: np.ndarray, r: Range) -> np.ndarray:
    """The part of a variable that a range holds, as a view."""
    if value.ndim == 0:
        return value
    return value[(slice(None),) * r.axis + (slice(r.begin, r.stop),)]
