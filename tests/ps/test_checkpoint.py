"""Files that safetensors itself reads, complete or not at all."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from downpour.proto import parameter_server_pb2 as pb
from downpour.proto.errors import CheckpointFailed
from downpour.ps import checkpoint
from downpour.ps.layout import Variable, plan
from downpour.ps.named import to_message
from downpour.ps.rules import RMSProp
from downpour.ps.snapshot import Snapshot

LAYOUT = plan([Variable("a", (3, 5)), Variable("b", (7,))], 2)


def specification(shard: int) -> pb.ShardSpecification:
    return pb.ShardSpecification(
        shard=shard, fingerprint=LAYOUT.fingerprint, layout=LAYOUT.canonical, rule=to_message(RMSProp())
    )


def vectors(shard: int) -> list[np.ndarray]:
    return [np.arange(LAYOUT.size(shard), dtype=np.float32) + 100 * i for i in range(3)]


def snapshot(shard: int) -> Snapshot:
    return Snapshot(vectors(shard), 9, threading.Lock())


def write(directory: Path) -> checkpoint.Checkpoint:
    files = tuple(checkpoint.write_shard(directory, specification(i), snapshot(i)) for i in range(2))
    saved = checkpoint.Checkpoint(directory, 9, LAYOUT, files, (9, 9))
    checkpoint.write_manifest(saved)
    return saved


def test_round_trip_and_format(tmp_path: Path) -> None:
    saved = write(tmp_path)
    assert checkpoint.load(tmp_path) == saved
    for shard, vector in enumerate(checkpoint.load(tmp_path).parameters()):
        np.testing.assert_array_equal(vector, vectors(shard)[0])
    tensors = load_file(tmp_path / saved.files[1])
    assert sorted(tensors) == ["parameters", "slot.mom", "slot.ms"]
    np.testing.assert_array_equal(tensors["slot.mom"], vectors(1)[2])
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*saved.files, checkpoint.MANIFEST])


def test_without_a_manifest_it_is_no_checkpoint(tmp_path: Path) -> None:
    checkpoint.write_shard(tmp_path, specification(0), snapshot(0))
    with pytest.raises(ValueError, match="not a complete checkpoint"):
        checkpoint.load(tmp_path)


def test_a_truncated_file_is_named(tmp_path: Path) -> None:
    saved = write(tmp_path)
    path = tmp_path / saved.files[0]
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(ValueError, match=rf"cannot read parameters from .*{saved.files[0]}"):
        saved.parameters()


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointFailed, match="shard 0 cannot write"):
        checkpoint.write_shard(tmp_path / "file" / "folder", specification(0), snapshot(0))
