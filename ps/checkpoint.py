"""Checkpoints: one safetensors file a shard, written by the shard, and a manifest, written last by the chief.

A file holds the shard's flat vectors (`parameters`, `slot.NAME` for each optimizer slot, `slot.average` if the job
keeps an average of its parameters); the manifest holds the layout that says what is where. A directory without a
manifest is not a checkpoint. Every file appears under its name only when it is complete.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from downpour.proto import parameter_server_pb2 as pb
from downpour.proto.errors import CheckpointFailed
from downpour.ps import rules
from downpour.ps.layout import Layout, from_canonical
from downpour.ps.named import from_message
from downpour.ps.snapshot import Snapshot

MANIFEST = "manifest.json"
_FORMAT = 1


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint: its directory, global step, layout, and each shard's file and version."""

    directory: Path
    step: int
    layout: Layout
    files: tuple[str, ...]
    versions: tuple[int, ...]

    def parameters(self, average: bool = False) -> list[np.ndarray]:
        """One flat float32 vector a shard: the parameters, or their average.

        Raises:
            ValueError: A file is missing, damaged or of another size, or has no average.
        """
        return [
            self._read(shard, "slot.average" if average else "parameters") for shard in range(self.layout.num_shards)
        ]

    def _read(self, shard: int, tensor: str) -> np.ndarray:
        path = self.directory / self.files[shard]
        try:
            with safe_open(path, framework="numpy") as file:
                vector: np.ndarray = file.get_tensor(tensor)
        except (OSError, SafetensorError) as error:
            raise ValueError(f"cannot read {tensor} from {path}: {error}; use another checkpoint") from None
        if vector.size != self.layout.size(shard):
            raise ValueError(f"{path} has {vector.size} parameters, its manifest says {self.layout.size(shard)}")
        return vector


def write_shard(directory: Path, specification: pb.ShardSpecification, snapshot: Snapshot) -> str:
    """Writes one shard's file, block by block, and returns its name.

    Raises:
        CheckpointFailed: The directory cannot be written, or the disk is full.
    """
    num_shards = from_canonical(specification.layout).num_shards
    name = f"shard-{specification.shard:05d}-of-{num_shards:05d}.safetensors"
    slots = from_message(rules.BY_NAME, specification.rule).slots
    names = ["parameters", *(f"slot.{slot}" for slot in slots), *["slot.average"] * specification.HasField("average")]
    metadata = {"version": str(snapshot.version), "fingerprint": specification.fingerprint.hex()}
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with _appears_complete(directory / name) as temporary:
            _write_safetensors(temporary, names, snapshot, metadata)
    except OSError as error:
        raise CheckpointFailed(f"shard {specification.shard} cannot write {directory / name}: {error}") from None
    return name


def write_manifest(checkpoint: Checkpoint) -> None:
    """Makes a directory whose files are all written a checkpoint.

    Raises:
        CheckpointFailed: The manifest cannot be written.
    """
    document = {
        "format": _FORMAT,
        "step": checkpoint.step,
        "files": checkpoint.files,
        "versions": checkpoint.versions,
        "layout": checkpoint.layout.canonical,
    }
    try:
        with _appears_complete(checkpoint.directory / MANIFEST) as temporary:
            temporary.write_text(json.dumps(document, indent=1) + "\n")
    except OSError as error:
        raise CheckpointFailed(f"cannot write {checkpoint.directory / MANIFEST}: {error}") from None


def load(directory: Path) -> Checkpoint:
    """Reads a checkpoint's manifest.

    Raises:
        ValueError: There is none, or this version cannot read it.
    """
    path = directory / MANIFEST
    try:
        document = json.loads(path.read_text())
        if document["format"] != _FORMAT:
            raise ValueError(f"{path} has format {document['format']}; this version reads format {_FORMAT}")
        return Checkpoint(
            directory,
            document["step"],
            from_canonical(document["layout"]),
            tuple(document["files"]),
            tuple(document["versions"]),
        )
    except FileNotFoundError:
        raise ValueError(f"{directory} is not a complete checkpoint: it has no {MANIFEST}") from None
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is damaged: {error!r}; use another checkpoint") from None


def _write_safetensors(path: Path, names: Sequence[str], snapshot: Snapshot, metadata: Mapping[str, str]) -> None:
    """Writes the snapshot's float32 vectors in the safetensors format.

    The library's own `save_file` needs all tensors at once, and copies each of them.
    """
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    vector_bytes = 4 * snapshot.size
    for i, name in enumerate(names):
        offsets = [i * vector_bytes, (i + 1) * vector_bytes]
        header[name] = {"dtype": "F32", "shape": [snapshot.size], "data_offsets": offsets}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the data begin at a multiple of eight
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        data = file.tell()
        for start, pieces in snapshot.blocks():
            for i, piece in enumerate(pieces):
                file.seek(data + i * vector_bytes + 4 * start)
                file.write(piece.data)


@contextlib.contextmanager
def _appears_complete(path: Path) -> Iterator[Path]:
    """Yields a temporary path; renames it when the block succeeds, removes it when it does not."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
