"""Restores a shard's arena from a checkpoint, whatever number of shards wrote it.

With the same layout, vectors, counters, rate, ledger and rounds are copied unchanged. With another one, every element
of parameters and slots is copied to its new place; the version is the highest of the shards that wrote the checkpoint,
the rate that of the last change, and the ledger records as complete the last push of every worker that any of them
recorded, so that no push still in flight is applied again. Gradients that were summed towards an update are then lost,
which is logged. Pure but for the files; no locks, since the arena is not served yet.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging

from downpour.proto import parameter_server_pb2 as pb
from downpour.proto.errors import LayoutMismatch
from downpour.ps.checkpoint.manifest import Checkpoint
from downpour.ps.checkpoint.shard_file import TensorFile
from downpour.ps.layout import Layout, Range, Variable, from_canonical
from downpour.ps.memory.arena import Arena, means
from downpour.ps.memory.ledger import COUNTERS, LEDGER_ENTRY, RATE
from downpour.ps.policy.pace import ROUND, Async

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
            f"{'; '.join(differences[:3])}; give the recipe that it was written with, "
            "or fit the same model: where its layers have other names, name them in the code that makes it"
        )


def arena_of(
    path: Path | None, specification: pb.ShardSpecification, checkpoint: Checkpoint, *, with_slots: bool
) -> Arena:
    """Creates a shard's arena from a checkpoint; the arena is not marked complete yet.

    Args:
        path: Path of its file; None for anonymous memory.
        specification: The shard's specification.
        checkpoint: The checkpoint to read.
        with_slots: Whether slots, average, counters, rate and ledger are restored as well.

    Raises:
        LayoutMismatch: The checkpoint is of other variables.
        ValueError: A file is missing or damaged, or lacks a slot that the rule needs; or there is no room.
    """
    layout = from_canonical(specification.layout)
    check(checkpoint, layout.variables)
    same_layout = checkpoint.layout.canonical == layout.canonical
    arena = Arena.create(path, specification, hollow=same_layout and with_slots)
    with arena.closed_on_error():
        if same_layout and with_slots:
            _copy(arena, checkpoint)
        else:
            names = [name for name in arena.vectors if name == "parameters" or (with_slots and name != "sum")]
            _redistribute(arena, checkpoint, names)
            if with_slots:
                _merge_records(arena, checkpoint)
            else:
                arena.start_average()
    return arena


def _copy(arena: Arena, checkpoint: Checkpoint) -> None:
    """Copies vectors, counters, rate, ledger and rounds unchanged."""
    file = checkpoint.open(arena.specification.shard)
    begins = "sum" in arena.vectors and "sum" not in file.names and not means(arena.specification).are_single
    for name in arena.vectors:
        if name == "sum" and begins:
            arena.sum[:] = 0
            continue
        _check_has(file, name, checkpoint)
        at = 0
        for piece in file.pieces(name):
            arena.write(name, at, piece)
            at += piece.size
    arena.counters_record[:] = file.record("counters").view(COUNTERS)
    _take_rate(arena, file)
    arena.ledger[:] = file.record("ledger").view(LEDGER_ENTRY)
    arena.rounds[:] = file.record("rounds").view(ROUND)
    if begins:
        _begin_rounds(arena)
    if "sum" not in arena.vectors:
        _tell_of_lost(_num_summed(file), checkpoint)


def _redistribute(arena: Arena, checkpoint: Checkpoint, names: list[str]) -> None:
    files: dict[int, TensorFile] = {}
    for mine, theirs in _overlaps(arena.layout, arena.specification.shard, checkpoint.layout):
        shape = arena.layout.variables[mine.variable].shape
        my_box, their_box = _box(mine, shape), _box(theirs, shape)
        common = [(max(a, c), min(b, d)) for (a, b), (c, d) in zip(my_box, their_box, strict=True)]
        if theirs.shard not in files:
            files = {theirs.shard: checkpoint.open(theirs.shard)}  # overlaps come by shard: one open file is enough
        for name in names:
            _check_has(files[theirs.shard], name, checkpoint)
            source = files[theirs.shard].vector(name, theirs.offset, theirs.offset + theirs.size)
            target = arena.vectors[name][mine.offset : mine.offset + mine.size]
            _within(target, my_box, common)[...] = _within(source, their_box, common)


def _overlaps(mine: Layout, shard: int, theirs: Layout) -> Iterator[tuple[Range, Range]]:
    """Yields pairs of my and their ranges with elements in common, in the order of theirs in their files."""
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
    lost = 0
    for shard in range(checkpoint.layout.num_shards):
        file = checkpoint.open(shard)
        lost = max(lost, _num_summed(file))
        counters = file.record("counters").view(COUNTERS)[0]
        for key in ("version", "pushes", "dropped"):
            arena.counters[key] = max(arena.counters[key], counters[key])
        _take_rate(arena, file)
        theirs = file.record("ledger").view(LEDGER_ENTRY)
        for worker in np.flatnonzero(theirs["incarnation"]):
            entry, other = arena.ledger[worker], theirs[worker]
            pushes = max(entry["pushes"], other["pushes"])
            if (other["incarnation"], other["sequence"]) > (entry["incarnation"], entry["sequence"]):
                arena.ledger[worker] = other
            entry["complete"], entry["pushes"] = 1, pushes
    _begin_rounds(arena)
    _tell_of_lost(lost, checkpoint)


def _begin_rounds(arena: Arena) -> None:
    """Begins every chunk's next update, without gradients, at the number that the version says."""
    number = means(arena.specification).number(int(arena.counters["version"]))
    arena.rounds["round"], arena.rounds["count"] = number, 0


def _num_summed(file: TensorFile) -> int:
    """Gradients that a file has summed towards the next update of a chunk, the most of all chunks."""
    return int(file.record("rounds").view(ROUND)["count"].max(initial=0)) if "sum" in file.names else 0


def _tell_of_lost(num_summed: int, checkpoint: Checkpoint) -> None:
    if num_summed:
        logging.warning(
            "%d gradients that %s had summed towards the next update are lost, since its layout or its treatment of "
            "staleness was another",
            num_summed,
            checkpoint.directory,
        )


def _take_rate(arena: Arena, file: TensorFile) -> None:
    """Copies the rate of a file, if it is of a later change; files of older versions have none."""
    if "rate" in file.names:
        theirs = file.record("rate").view(RATE)
        if theirs[0]["number"] > arena.rate_record[0]["number"]:
            arena.rate_record[:] = theirs


def _check_has(file: TensorFile, name: str, checkpoint: Checkpoint) -> None:
    """Raises `ValueError` if a checkpoint lacks a vector, since its job had another rule, average or pace."""
    if name in file.names:
        return
    theirs = checkpoint.specification
    if name == "slot.average":
        had, change = "kept no average of the parameters", "without `average`"
    elif name == "sum":
        had, change = f"had the pace {theirs.pace.name or Async.__name__}", "with that pace"
    else:
        had, change = f"had the rule {theirs.rule.name}", "with that rule"
    raise ValueError(
        f"the checkpoint {checkpoint.directory} has no {name}, since its job {had}; resume {change}, or begin a new "
        f"job with its parameters by --init_from={checkpoint.directory}"
    )


def _box(r: Range, shape: tuple[int, ...]) -> _Box:
    return [(r.begin, r.stop) if axis == r.axis else (0, length) for axis, length in enumerate(shape)]


def _within(flat: np.ndarray, box: _Box, part: _Box) -> np.ndarray:
    """The elements of `part`, a view of the flat elements of `box`."""
    whole = flat.reshape([stop - begin for begin, stop in box])
    inside = [slice(begin - first, stop - first) for (first, _), (begin, stop) in zip(box, part, strict=True)]
    index: Any = (..., *inside)  # the ellipsis makes it a view even without axes
    view: np.ndarray = whole[index]
    return view


def _shape(shape: tuple[int, ...] | None) -> str:
    return "missing" if shape is None else str(list(shape))
