"""A shard's file of a checkpoint: its tensors as safetensors, written by the shard, read piece by piece.

Vectors (`parameters`, `slot.NAME` for each optimizer slot, `slot.average` and `sum` where the job has them) are
float32; `counters`, `rate`, `ledger` and `rounds` are written as unsigned integers (`downpour.ps.memory.ledger`,
`downpour.ps.policy.pace`); files of older versions have no `rate`. The manifest has a checksum of every 4 MB of every
tensor.
"""

from __future__ import annotations

import errno
import json
import os
import secrets
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import google_crc32c
import numpy as np

from downpour.proto import parameter_server_pb2 as pb
from downpour.proto.errors import CheckpointFailed
from downpour.ps.checkpoint.storage import Folder, StorageError
from downpour.ps.layout import from_canonical
from downpour.ps.layout.chunks import BLOCK_ELEMENTS
from downpour.ps.memory.snapshot import Snapshot

_BLOCK_BYTES = 4 * BLOCK_ELEMENTS
_LONGEST_HEADER_BYTES = 1 << 20
MANIFEST = "manifest.json"  # `downpour.ps.checkpoint.manifest`
HINT = "; use another checkpoint"


class Damaged(ValueError):
    """A checkpoint is not what was written: a file is missing, cut off or changed. The message names it."""


@dataclass(frozen=True)
class ShardFile:
    """The manifest's entry of a shard's file: name, version, pushes counted, checksums of each tensor's blocks."""

    file: str
    version: int
    pushes: int
    checksums: Mapping[str, Sequence[int]]

    @classmethod
    def of(cls, reply: pb.WriteCheckpointReply) -> ShardFile:
        """Converts the shard's reply."""
        checksums = {of.tensor: list(of.blocks) for of in reply.checksums}
        return cls(reply.file, reply.version, reply.pushes, checksums)


class TensorFile:
    """One shard's file, read piece by piece; every piece is compared with its checksum.

    Raises:
        Damaged: The file is missing, or its header is damaged. Methods raise it where the data they read are damaged.
        ValueError: The file cannot be read.
    """

    def __init__(self, folder: Folder, entry: ShardFile) -> None:
        self._folder, self._entry = folder, entry
        self._buffer = np.empty(0, np.uint8)  # the bytes read last; reused, since fresh memory is slow
        self._cached = "", 0, self._buffer  # tensor, first block and content, if blocks were read last
        self._data = 8 + min(int.from_bytes(self._read(0, 8).tobytes(), "little"), _LONGEST_HEADER_BYTES)
        header = self._read(8, self._data).tobytes()
        try:
            self._offsets: dict[str, list[int]] = {
                name: tensor["data_offsets"] for name, tensor in json.loads(header).items() if name != "__metadata__"
            }
            sizes = {name: last - first for name, (first, last) in self._offsets.items()}
            # The manifest may lack an entry for a tensor without blocks.
            blocks = {name: -(-size // _BLOCK_BYTES) for name, size in sizes.items() if size}
            wrong = blocks != {name: len(sums) for name, sums in entry.checksums.items() if sums}
        except (KeyError, TypeError, AttributeError, ValueError):
            wrong = True
        if wrong:
            raise self._damaged("its header")

    @cached_property
    def names(self) -> list[str]:
        """Names of its tensors."""
        return list(self._offsets)

    def vector(self, name: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Elements [start, stop) of a float32 vector, all by default."""
        first, last = self._place(name)
        stop = (last - first) // 4 if stop is None else stop
        out = np.empty(stop - start, np.float32)
        raw = out.view(np.uint8)
        at = 4 * start
        while at < 4 * stop:
            content = self._blocks(name, at // _BLOCK_BYTES, 4 * stop)
            begin = at % _BLOCK_BYTES
            part = content[begin : begin + 4 * stop - at]
            raw[at - 4 * start :][: part.size] = part
            at += part.size
        return out

    def pieces(self, name: str) -> Iterator[np.ndarray]:
        """A tensor's bytes, in order; each piece [n] uint8 is overwritten by the next."""
        first, last = self._place(name)
        at = 0
        while at < last - first:
            piece = self._blocks(name, at // _BLOCK_BYTES, last - first)
            at += piece.size
            yield piece

    def record(self, name: str) -> np.ndarray:
        """A tensor of unsigned integers, flat."""
        return np.frombuffer(b"".join(piece.tobytes() for piece in self.pieces(name)), "<u8")

    def verify(self) -> None:
        """Reads the whole file, which compares it with its checksums, and keeps nothing."""
        for name in self._offsets:
            for _ in self.pieces(name):
                pass

    def _blocks(self, name: str, block: int, stop: int) -> np.ndarray:
        """Reads whole blocks from `block` on, up to byte `stop` of the tensor or as many as are read at a time."""
        if self._cached[:2] == (name, block) and self._cached[2].size + block * _BLOCK_BYTES >= stop:
            return self._cached[2]
        first, last = self._place(name)
        begin = first + block * _BLOCK_BYTES
        num_blocks = min(self._folder.read_bytes // _BLOCK_BYTES, -(-(stop - block * _BLOCK_BYTES) // _BLOCK_BYTES))
        size = min(num_blocks * _BLOCK_BYTES, last - begin)
        content = self._read(self._data + begin, self._data + begin + size)
        if content.size != size:
            raise self._damaged(f"{name}, which ends after {begin + content.size - first:,} of {last - first:,} bytes")
        expected = self._entry.checksums.get(name, ())
        for number, at in enumerate(range(0, size, _BLOCK_BYTES), block):
            if number >= len(expected) or google_crc32c.value(content[at : at + _BLOCK_BYTES]) != expected[number]:
                raise self._damaged(f"{name}, bytes {number * _BLOCK_BYTES:,} and following")
        self._cached = name, block, content
        return content

    def _place(self, name: str) -> tuple[int, int]:
        if name not in self._offsets:
            raise ValueError(f"{self._folder.url}/{self._entry.file} has no {name}; it has {', '.join(self._offsets)}")
        first, last = self._offsets[name]
        return first, last

    def _read(self, start: int, stop: int) -> np.ndarray:
        """Reads bytes [start, stop), or as many as exist; the next read overwrites them."""
        if self._buffer.size < stop - start:
            self._buffer = np.empty(stop - start, np.uint8)
        self._cached = "", 0, self._buffer[:0]
        try:
            return self._buffer[: self._folder.read_into(self._entry.file, start, self._buffer[: stop - start])]
        except FileNotFoundError:
            raise Damaged(f"{self._folder.url}/{self._entry.file} is missing{HINT}") from None
        except StorageError as error:
            if error.errno == errno.EIO:
                raise self._damaged(str(error)) from None
            raise ValueError(str(error)) from None

    def _damaged(self, what: str) -> Damaged:
        return Damaged(f"{self._folder.url}/{self._entry.file} is damaged: {what}{HINT}")


def write_shard(
    directory: str | os.PathLike[str], specification: pb.ShardSpecification, snapshot: Snapshot
) -> pb.WriteCheckpointReply:
    """Writes one shard's file, piece by piece, and returns its name and checksums; replaces none of a checkpoint.

    Raises:
        CheckpointFailed: The folder cannot be written, or the disk is full.
    """
    num_shards = from_canonical(specification.layout).num_shards
    name, ending = f"shard-{specification.shard:05d}-of-{num_shards:05d}", ".safetensors"
    checksums: dict[str, list[int]] = {}
    try:
        folder = Folder(directory)
        if MANIFEST in folder.names():  # an earlier checkpoint of this step stays until this one is complete
            name += f"-{secrets.token_hex(4)}"
        name += ending
        folder.write(name, _safetensors(specification, snapshot, checksums))
    except OSError as error:
        raise CheckpointFailed(f"shard {specification.shard}: {error}") from None
    counters = snapshot.records["counters"][0]
    reply = pb.WriteCheckpointReply(file=name, version=int(counters["version"]), pushes=int(counters["pushes"]))
    for tensor, blocks in checksums.items():
        reply.checksums.add(tensor=tensor, blocks=blocks)
    return reply


def _safetensors(
    specification: pb.ShardSpecification, snapshot: Snapshot, checksums: dict[str, list[int]]
) -> Iterator[Any]:
    """Yields a file in the safetensors format, in pieces; adds to `checksums` meanwhile.

    The library's own `save_file` needs all tensors at once, and copies each of them.
    """
    vector_bytes = 4 * snapshot.size
    integers = {
        name: record.view("<u8").reshape(record.size, record.dtype.itemsize // 8)
        for name, record in snapshot.records.items()
    }
    places = [(name, "F32", [snapshot.size], vector_bytes) for name in snapshot.names]
    places += [(name, "U64", list(record.shape), record.nbytes) for name, record in integers.items()]
    header: dict[str, Any] = {"__metadata__": {"fingerprint": specification.fingerprint.hex()}}
    end = 0
    for name, dtype, shape, num_bytes in places:
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + num_bytes]}
        end += num_bytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the data begin at a multiple of eight
    yield len(text).to_bytes(8, "little") + text
    num_blocks = -(-vector_bytes // _BLOCK_BYTES)
    for number, piece in enumerate(snapshot.pieces()):
        raw = piece.tobytes()  # the checksum function accepts only bytes
        checksums.setdefault(snapshot.names[number // num_blocks], []).append(google_crc32c.value(raw))
        yield raw
    for name, record in integers.items():
        raw = record.tobytes()
        checksums[name] = [google_crc32c.value(raw[at : at + _BLOCK_BYTES]) for at in range(0, len(raw), _BLOCK_BYTES)]
        yield raw
