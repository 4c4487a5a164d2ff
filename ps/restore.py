"""From a checkpoint to a shard's arena, whatever number of shards wrote it.

Onto the same layout everything comes back as it was: vectors, counters, ledger, rounds. Onto another one each element
of each variable is found again, parameters and slots alike; then the version is the highest of the shards that wrote
the checkpoint, and the ledger knows of every worker the last push that any of them knew, as complete, so that nothing
which is still under way from before counts again. Pure but for the files; no locks: nobody serves the arena yet.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from downpour.proto.errors import LayoutMismatch
from downpour.ps.arena import Arena
from downpour.ps.checkpoint import Checkpoint, TensorFile
from downpour.ps.layout import Layout, Range, Variable
from downpour.ps.ledger import COUNTERS, LEDGER_ENTRY
from downpour.ps.pace import ROUND

_Box = list[tuple[int, int]]  # along each axis of a variable, [begin, stop)


def check(checkpoint: Checkpoint, variables: Sequence[Variable]) -> None:
    """Raises `LayoutMismatch` when a checkpoint is not of these variables, with the first three differences."""
    theirs = {v.name: v.shape for v in checkpoint.layout.variables}
    mine = {v.name: v.shape for v in variables}
    differences = [
        f"{name} is {_shape(mine.get(name))} here, {_shape(theirs.get(name))} there"
        for name in [*mine, *(name for name in theirs if name not in mine)]
        if mine.get(name) != theirs.get(name)
    ]
    if differences:
        raise LayoutMismatch(
            f"the checkpoint {checkpoint.directory} is of another model, {len(differences)} variables differ: "
            f"{'; '.join(differences[:3])}; give the recipe that it was written with"
        )


def fill(arena: Arena, checkpoint: Checkpoint, *, with_slots: bool) -> None:
    """Fills a new arena.

    Args:
        arena: Not yet complete; its slots have their initial values.
        checkpoint: Of the same variables, see `check`.
        with_slots: Whether slots, average, counters and ledger come back as well.

    Raises:
        ValueError: A file is missing or damaged, or lacks a slot that the rule needs.
    """
    shard = arena.specification.shard
    names = [name for name in arena.vectors if with_slots or name == "parameters"]
    if checkpoint.layout.canonical == arena.layout.canonical:
        file = checkpoint.open(shard)
        for name in names:
            _check_has(file, name, checkpoint)
            file.vector(name, out=arena.vectors[name])
        if with_slots:
            arena.counters_record[:] = file.record("counters").view(COUNTERS)
            arena.ledger[:] = file.record("ledger").view(LEDGER_ENTRY)
            arena.rounds[:] = file.record("rounds").view(ROUND)
    else:
        _redistribute(arena, checkpoint, [name for name in names if name != "sum"])
        if with_slots:
            _merge_records(arena, checkpoint)
    if not with_slots:
        arena.start_average()


def _redistribute(arena: Arena, checkpoint: Checkpoint, names: list[str]) -> None:
    files: dict[int, TensorFile] = {}
    for mine, theirs in _overlaps(arena.layout, arena.specification.shard, checkpoint.layout):
        shape = arena.layout.variables[mine.variable].shape
        my_box, their_box = _box(mine, shape), _box(theirs, shape)
        common = [(max(a, c), min(b, d)) for (a, b), (c, d) in zip(my_box, their_box, strict=True)]
        if theirs.shard not in files:
            files = {theirs.shard: checkpoint.open(theirs.shard)}  # in the order of shards: one is enough
        for name in names:
            _check_has(files[theirs.shard], name, checkpoint)
            source = files[theirs.shard].vector(name, theirs.offset, theirs.offset + theirs.size)
            target = arena.vectors[name][mine.offset : mine.offset + mine.size]
            _within(target, my_box, common)[...] = _within(source, their_box, common)


def _overlaps(mine: Layout, shard: int, theirs: Layout) -> Iterator[tuple[Range, Range]]:
    """My ranges and theirs with elements in common, in the order in which theirs lie in their files."""
    numbers = {v.name: number for number, v in enumerate(mine.variables)}
    wanted: dict[int, list[Range]] = {}
    for r in mine.by_shard[shard]:
        wanted.setdefault(r.variable, []).append(r)
    for their_shard in theirs.by_shard:
        for there in their_shard:
            variable = theirs.variables[there.variable]
            for here in wanted.get(numbers[variable.name], ()):
                boxes = zip(_box(here, variable.shape), _box(there, variable.shape), strict=True)
                if all(max(a, c) < min(b, d) for (a, b), (c, d) in boxes):
                    yield here, there


def _merge_records(arena: Arena, checkpoint: Checkpoint) -> None:
    for shard in range(checkpoint.layout.num_shards):
        file = checkpoint.open(shard)
        counters = file.record("counters").view(COUNTERS)[0]
        for key in ("version", "pushes", "dropped"):
            arena.counters[key] = max(arena.counters[key], counters[key])
        theirs = file.record("ledger").view(LEDGER_ENTRY)
        for worker in np.flatnonzero(theirs["incarnation"]):
            entry, other = arena.ledger[worker], theirs[worker]
            pushes = max(entry["pushes"], other["pushes"])
            if (other["incarnation"], other["sequence"]) > (entry["incarnation"], entry["sequence"]):
                arena.ledger[worker] = other
            entry["complete"], entry["pushes"] = 1, pushes
    arena.rounds["round"] = arena.counters["version"]


def _check_has(file: TensorFile, name: str, checkpoint: Checkpoint) -> None:
    if name not in file.names:
        raise ValueError(
            f"the checkpoint {checkpoint.directory} has no {name}, it was written with the rule "
            f"{checkpoint.specification.rule.name}; resume with that rule, or without slots"
        )


def _box(r: Range, shape: tuple[int, ...]) -> _Box:
    return [(r.begin, r.stop) if axis == r.axis else (0, length) for axis, length in enumerate(shape)]


def _within(flat: np.ndarray, box: _Box, part: _Box) -> np.ndarray:
    """The elements of `part`, a view of the flat elements of `box`."""
    whole = flat.reshape([stop - begin for begin, stop in box])
    inside = [slice(begin - first, stop - first) for (first, _), (begin, stop) in zip(box, part, strict=True)]
    index: Any = (..., *inside)  # with the dots a view even where there are no axes
    view: np.ndarray = whole[index]
    return view


def _shape(shape: tuple[int, ...] | None) -> str:
    return "missing" if shape is None else str(list(shape))
