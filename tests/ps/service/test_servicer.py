"""A shard is created whole: what it cannot serve leaves no arena that a restarted process would open."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from downpour.proto import codec
from downpour.proto import parameter_server_pb2 as pb
from downpour.proto.errors import CheckpointFailed, LayoutMismatch
from downpour.ps.layout import Variable, lay_out
from downpour.ps.memory.arena import Arena
from downpour.ps.policy.pace import Async
from downpour.ps.policy.rules import RMSProp
from downpour.ps.policy.schedules import StaircaseExponential
from downpour.ps.policy.specification import Policies, specification_of
from downpour.ps.policy.staleness import Keep
from downpour.ps.service import servicer
from downpour.ps.service.servicer import Servicer
from downpour.ps.shard.shard import Shard
from tests.chunks import encode_chunk
from tests.ps.checkpoint.saving import save_shards

LAYOUT = lay_out([Variable("w", (5,))], 1)


def good() -> pb.ShardSpecification:
    return specification_of(Policies(RMSProp(), StaircaseExponential(0.1, 0.5, 3), Async(), Keep(), None), LAYOUT, 2)


def without_every(specification: pb.ShardSpecification) -> None:
    del specification.schedule.parameters["every"]


def with_no_schedule(specification: pb.ShardSpecification) -> None:
    specification.ClearField("schedule")


def without_rho(specification: pb.ShardSpecification) -> None:
    specification.rule.parameters["rho"].values.append(0.5)


BAD = [without_every, with_no_schedule, without_rho]


def initialize(served: Servicer, specification: pb.ShardSpecification) -> pb.InitializeReply:
    message = encode_chunk(0, codec.FLOAT32, np.arange(5, dtype=np.float32), specification)
    return served.initialize(iter([message]), None)  # type: ignore[arg-type]


@pytest.mark.parametrize("spoil", BAD)
def test_values_with_a_bad_specification_leave_no_arena(
    tmp_path: Path, spoil: Callable[[pb.ShardSpecification], None]
) -> None:
    served, bad = Servicer(0, tmp_path / "arena"), good()
    spoil(bad)
    with pytest.raises(LayoutMismatch, match="shard 0: "):
        initialize(served, bad)
    assert not served.ready and not Servicer(0, tmp_path / "arena").ready
    initialize(served, good())
    assert served.ready
    served.close()


@pytest.mark.parametrize("spoil", BAD)
def test_a_checkpoint_with_a_bad_specification_leaves_no_arena(
    tmp_path: Path, spoil: Callable[[pb.ShardSpecification], None]
) -> None:
    saved = save_shards(tmp_path / "step-1", [Shard(Arena.create(None, good()))])
    served, bad = Servicer(0, tmp_path / "arena"), good()
    spoil(bad)
    request = pb.RestoreRequest(specification=bad, directory=saved.directory)
    with pytest.raises(CheckpointFailed, match="shard 0: "):
        served.restore(request, None)  # type: ignore[arg-type]
    assert not served.ready and not Servicer(0, tmp_path / "arena").ready
    request.specification.CopyFrom(good())
    served.restore(request, None)  # type: ignore[arg-type]
    assert served.ready
    served.close()


def test_an_arena_is_marked_complete_only_once_it_can_be_served(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failures = []

    def fail(arena: Arena) -> None:
        failures.append(arena)
        raise RuntimeError("the loops cannot be compiled")

    served = Servicer(0, tmp_path / "arena")
    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="cannot be compiled"):
        patch.setattr(servicer, "Shard", fail)
        initialize(served, good())
    assert len(failures) == 1
    assert not served.ready and not Servicer(0, tmp_path / "arena").ready
    initialize(served, good())
    assert served.ready
    served.close()
