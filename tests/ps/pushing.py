"""What tests need to push to a shard without sockets."""

from __future__ import annotations

from typing import Any

import numpy as np

from downpour.proto import codec
from downpour.proto import parameter_server_pb2 as pb
from downpour.ps.layout import Layout
from downpour.ps.memory.arena import Arena
from downpour.ps.policy.named import to_message
from downpour.ps.policy.schedules import Constant
from downpour.ps.shard.shard import Shard
from tests.chunks import encode_chunk


def new_shard(
    layout: Layout,
    values: np.ndarray,
    rule: Any,
    schedule: Any = None,
    average: Any = None,
    pace: Any = None,
    num_workers: int = 0,
) -> Shard:
    """The only shard of a layout, in anonymous memory, that holds these values."""
    specification = pb.ShardSpecification(
        fingerprint=layout.fingerprint,
        layout=layout.canonical,
        rule=to_message(rule),
        schedule=to_message(schedule or Constant(1.0)),
        average=None if average is None else to_message(average),
        pace=None if pace is None else to_message(pace),
        num_workers=num_workers,
    )
    arena = Arena.create(None, specification)
    arena.parameters[:] = values
    arena.start_average()
    arena.mark_complete()
    return Shard(arena)


def push(shard: Shard, sequence: int, values: np.ndarray, worker: int = 0, base_version: int = 0) -> pb.PushReply:
    """One push, in pieces of at most 7 elements."""
    header = pb.PushHeader(worker=worker, incarnation=1, sequence=sequence, base_version=base_version)
    opened = shard.begin(header)
    for start in range(0, values.size, 7):
        part = values[start : start + 7].astype(np.float32)
        shard.apply(opened, codec.decode_chunk(encode_chunk(start, codec.FLOAT32, part)))
    return shard.finish(opened)
