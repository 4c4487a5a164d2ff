"""A shard that is killed within a compiled loop: each element has been updated once for each push, or is next.

Points that a test could name are not in the loops (see `tests.ps.shard.test_killed` for those around them), so a
process pushes without end, and is killed when the memory that it shares with the test says that a loop has begun.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from downpour.proto import codec
from downpour.proto import parameter_server_pb2 as pb
from downpour.ps.layout import Variable, lay_out
from downpour.ps.memory.arena import Arena
from downpour.ps.policy.named import to_message
from downpour.ps.policy.rules import SGD, RMSProp, Rule
from downpour.ps.policy.schedules import Constant
from downpour.ps.shard.shard import Shard
from tests.chunks import encode_chunk
from tests.conftest import wait_until

pytestmark = pytest.mark.process

SIZE = 1 << 20  # of one region, which a loop goes through in a millisecond
LAYOUT = lay_out([Variable("w", (SIZE,))], 1)
LIVES = 12
GRADIENTS = {codec.FLOAT32: np.full(SIZE, -1, np.float32), codec.BFLOAT16: np.full(SIZE, 0xBF80, np.uint16)}


def new_arena(path: Path | None, rule: Rule) -> Arena:
    specification = pb.ShardSpecification(
        fingerprint=LAYOUT.fingerprint,
        layout=LAYOUT.canonical,
        rule=to_message(rule),
        schedule=to_message(Constant(1.0)),
        num_workers=4,
    )
    arena = Arena.create(path, specification)
    arena.mark_complete()
    return arena


def push(shard: Shard, worker: int, sequence: int, wire: int) -> None:
    opened = shard.begin(pb.PushHeader(worker=worker, incarnation=1, sequence=sequence))
    shard.apply(opened, codec.decode_chunk(encode_chunk(0, wire, GRADIENTS[wire])))
    shard.finish(opened)


def push_until_killed(arena: Arena, workers: Sequence[int], wire: int) -> None:
    shard = Shard(arena)

    def work(worker: int) -> None:
        entry = arena.ledger[worker]
        while True:  # what was cut off first
            push(shard, worker, int(entry["sequence"]) + (1 if entry["complete"] or not entry["sequence"] else 0), wire)

    with ThreadPoolExecutor(len(workers)) as pool:
        list(pool.map(work, workers))


def kill_in_a_loop(arena: Arena, workers: Sequence[int], wire: int) -> None:
    """Has a new process push, and kills it when it has updated a part of a region for some pushes."""
    begun = arena.counters["pushes"] + 2
    process = os.fork()
    if not process:
        try:
            push_until_killed(arena, workers, wire)
        finally:
            os._exit(1)
    records = arena.undo._records[1:]
    try:
        wait_until(
            lambda: arena.counters["pushes"] > begun and np.any((records["position"] % SIZE > 0) & records["armed"]),
            "a loop that has begun",
        )
    finally:
        os.kill(process, signal.SIGKILL)
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == -signal.SIGKILL
    arena.undo.recover()


def num_updates(arena: Arena, workers: Sequence[int]) -> np.ndarray:
    """Of each element, how many pushes the ledger says have updated it."""
    counts = np.zeros(SIZE, np.int64)
    for entry in arena.ledger[list(workers)]:
        counts += int(entry["pushes"])
        counts[: 0 if entry["complete"] else int(entry["applied"])] += 1
    return counts


@pytest.mark.parametrize("wire", GRADIENTS, ids={codec.FLOAT32: "float32", codec.BFLOAT16: "bfloat16"}.get)
def test_pushes_that_are_applied_together_count_once_each(tmp_path: Path, wire: int) -> None:
    arena, workers, num_inside = new_arena(tmp_path / "arena", SGD()), range(3), 0
    for _ in range(LIVES):
        kill_in_a_loop(arena, workers, wire)
        counts = num_updates(arena, workers)
        np.testing.assert_array_equal(arena.parameters, counts)
        num_inside += counts.min() < counts.max()
    assert num_inside, f"none of {LIVES} kills came in the middle of a loop"
    arena.close()


def test_parameters_and_slots_stay_together(tmp_path: Path) -> None:
    rule, wire = RMSProp(momentum=0.9), codec.BFLOAT16
    arena, reference, num_inside = new_arena(tmp_path / "arena", rule), new_arena(None, rule), 0
    undisturbed, num_pushed = Shard(reference), 0
    states = [{name: vector[0] for name, vector in reference.vectors.items()}]  # after each push
    for _ in range(LIVES):
        kill_in_a_loop(arena, [0], wire)
        counts = num_updates(arena, [0])
        while num_pushed < counts.max():
            num_pushed += 1
            push(undisturbed, 0, num_pushed, wire)
            states.append({name: vector[0] for name, vector in reference.vectors.items()})
        for name, vector in arena.vectors.items():
            expected = np.array([state[name] for state in states], np.float32)[counts]
            np.testing.assert_array_equal(vector, expected, err_msg=name)
        num_inside += counts.min() < counts.max()
    assert num_inside, f"none of {LIVES} kills came in the middle of a loop"
    arena.close()
