"""Places every slice of a variable on a shard. Pure and deterministic."""

from __future__ import annotations

from collections.abc import Sequence

from downpour.ps.layout import cuts
from downpour.ps.layout.cuts import Cut, Slicing
from downpour.ps.layout.layout import FACTORED, Layout, Variable, assemble
from downpour.ps.layout.patterns import matching


def lay_out(variables: Sequence[Variable], num_shards: int, slicing: Sequence[Slicing] = ()) -> Layout:
    """Places every variable.

    Slices go round robin, slice i on shard i modulo the number of shards, so the slices of a head's kernel and
    bias that belong to the same classes are on one shard. Everything else goes largest first onto the least
    loaded shard. Ranges whose constraint has norms are then cut further on their shard, to fit a piece of an update.

    Raises:
        ValueError: Names repeat, a slicing matches nothing or asks for more slices than there are columns, a
            variable cannot be factored or its constraint's norms not computed, or there are fewer than one shard.
    """
    if num_shards < 1:
        raise ValueError(f"{num_shards} shards; give at least 1")
    names = [v.name for v in variables]
    if repeated := sorted({n for n in names if names.count(n) > 1}):
        raise ValueError(f"variable names repeat: {', '.join(repeated[:3])}; give every layer its own name")
    slices = _slices(variables, slicing)
    for i, v in enumerate(variables):
        if v.kind == FACTORED and (len(v.shape) != 2 or (len(slices[i]) > 1 and slices[i][0][0] != 1)):
            raise ValueError(
                f"{v.name} {list(v.shape)} is factored; only a matrix that is whole or cut along axis 1 can be"
            )
        if v.kind == FACTORED and v.constraint and not cuts.may_be_factored(v.constraint):
            raise ValueError(f"{v.name} is factored; its constraint {v.constraint} sums over axis 1, so it cannot be")
    load = [0] * num_shards
    placed: list[tuple[int, Cut, int]] = []

    def place(variable: int, cut: Cut, shard: int) -> None:
        v = variables[variable]
        load[shard] += cuts.num_elements(v.shape, cut)
        fine = cuts.with_whole_norms(v.name, v.shape, cut, v.constraint) if v.constraint else [cut]
        placed.extend((variable, part, shard) for part in fine)

    for variable, of_variable in slices.items():
        if len(of_variable) > 1:
            for number, cut in enumerate(of_variable):
                place(variable, cut, number % num_shards)
    whole = [v for v, of_variable in slices.items() if len(of_variable) == 1]
    for variable in sorted(whole, key=lambda v: (-variables[v].size, v)):
        place(variable, slices[variable][0], load.index(min(load)))
    return assemble(tuple(variables), num_shards, placed)


def _slices(variables: Sequence[Variable], slicing: Sequence[Slicing]) -> dict[int, list[Cut]]:
    """Returns the cuts of every variable; a whole variable is one cut along axis 0."""
    slices = {i: [cuts.whole(v.shape)] for i, v in enumerate(variables)}
    for rule in slicing:
        matched = matching("slicing", rule.pattern, [v.name for v in variables])
        slices |= {i: cuts.sliced(v.name, v.shape, rule) for i, v in enumerate(variables) if v.name in matched}
    return slices
