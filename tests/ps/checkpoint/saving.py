"""Checkpoints for tests, written as shards and chief write them, without sockets."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from downpour.proto import parameter_server_pb2 as pb
from downpour.ps.checkpoint import manifest as checkpoint
from downpour.ps.checkpoint.shard_file import ShardFile, write_shard
from downpour.ps.layout import Layout
from downpour.ps.memory.ledger import COUNTERS
from downpour.ps.memory.snapshot import Snapshot
from downpour.ps.policy.named import to_message
from downpour.ps.policy.rules import SGD
from downpour.ps.shard.shard import Shard


def save(
    folder: Path | str,
    layout: Layout,
    vectors: Sequence[Mapping[str, np.ndarray]],
    *,
    step: int = 1,
    rule: Any = None,
    progress: Mapping[str, Any] | None = None,
) -> checkpoint.Checkpoint:
    """A checkpoint of these vectors, one mapping by name for each shard."""
    told = pb.ShardSpecification(
        fingerprint=layout.fingerprint, layout=layout.canonical, rule=to_message(rule or SGD())
    )
    files = []
    for shard, of_shard in enumerate(vectors):
        told.shard = shard
        counters = np.zeros(1, COUNTERS)
        counters["version"] = step
        snapshot = Snapshot(of_shard, {"counters": counters}, threading.Lock())
        files.append(ShardFile.of(write_shard(folder, told, snapshot)))
    told.ClearField("layout")
    saved = checkpoint.Checkpoint(str(folder), step, layout, tuple(files), told, progress or {})
    checkpoint.write_manifest(saved)
    return saved


def save_shards(folder: Path | str, shards: Sequence[Shard], step: int = 1) -> checkpoint.Checkpoint:
    """A checkpoint of some shards without sockets."""
    files = []
    for shard in shards:
        with shard.snapshot() as snapshot:
            reply = write_shard(folder, shard.arena.specification, snapshot)
        files.append(ShardFile.of(reply))
    told = pb.ShardSpecification()
    told.CopyFrom(shards[0].arena.specification)
    told.ClearField("layout")
    saved = checkpoint.Checkpoint(str(folder), step, shards[0].arena.layout, tuple(files), told)
    checkpoint.write_manifest(saved)
    return saved
