"""Steps that fail are undone with the shard's lock held, since ledger and rounds are restored, too."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from downpour.proto import parameter_server_pb2 as pb
from downpour.ps.layout import Variable, lay_out
from downpour.ps.memory.arena import Arena
from downpour.ps.policy.named import to_message
from downpour.ps.policy.rules import SGD
from downpour.ps.testing import points

LAYOUT = lay_out([Variable("w", (10,))], 1)


def test_an_undo_holds_the_lock(monkeypatch: pytest.MonkeyPatch) -> None:
    specification = pb.ShardSpecification(
        fingerprint=LAYOUT.fingerprint, layout=LAYOUT.canonical, rule=to_message(SGD())
    )
    arena, lock = Arena.create(None, specification), threading.Lock()
    arena.parameters[:] = 1.0
    held = []

    def on_reach(name: str) -> None:
        if name.startswith("undo."):
            held.append(lock.locked())

    monkeypatch.setattr(points, "on_reach", on_reach)
    with pytest.raises(RuntimeError, match="planned"), arena.undo.steps(lock, slice(0, 1)) as steps:
        steps.begin(0, [3])
        steps.save(0, 10)
        arena.parameters[:] = 2.0
        raise RuntimeError("planned")
    assert held and all(held)
    assert not lock.locked()
    np.testing.assert_array_equal(arena.parameters, np.ones(10, np.float32))
