"""Checkpoints: one safetensors file a shard, written by the shard, and a manifest, written last by the chief.

A shard's file holds its vectors (`parameters`, `slot.NAME` for each optimizer slot, `slot.average` and `sum` where the
job has them) as float32, and its `counters`, `ledger` and `rounds` as unsigned integers (`downpour.ps.memory.ledger`,
`downpour.ps.policy.pace`). The manifest holds the layout, which says what is where, a checksum of every 4 MB of every
tensor, what the shards were told, what the chief knew, and a checksum of itself. A folder without a manifest is not a
checkpoint. Every file appears under its name only when it is complete. The chief renames the manifest of a checkpoint
that it has found damaged, so that nobody takes it for one again.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import google_crc32c
import numpy as np
from absl import logging
from google.protobuf import json_format

from downpour.proto import parameter_server_pb2 as pb
from downpour.proto.errors import CheckpointFailed
from downpour.ps.checkpoint.storage import Folder, StorageError
from downpour.ps.layout import Layout, from_canonical
from downpour.ps.memory.snapshot import BLOCK_ELEMENTS, Snapshot

MANIFEST, SET_ASIDE = "manifest.json", "manifest.damaged.json"
_FORMAT = 2
_BLOCK_BYTES = 4 * BLOCK_ELEMENTS
_LONGEST_HEADER_BYTES = 1 << 20
_NUM_VERIFIED = 4  # files at a time; each takes a buffer of `Folder.read_bytes`
_CHECKSUM = "crc32c"  # of the manifest
_HINT = "; use another checkpoint"


class Damaged(ValueError):
    """A checkpoint is not what was written: a file is missing, cut off or changed. The message names it."""


@dataclass(frozen=True)
class ShardFile:
    """What the manifest says of a shard's file: name, version, pushes counted, checksums of each tensor's blocks."""

    file: str
    version: int
    pushes: int
    checksums: Mapping[str, Sequence[int]]

    @classmethod
    def of(cls, reply: pb.WriteCheckpointReply) -> ShardFile:
        """As the shard answered."""
        checksums = {of.tensor: list(of.blocks) for of in reply.checksums}
        return cls(reply.file, reply.version, reply.pushes, checksums)


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint.

    Attributes:
        directory: Path or URL of its folder.
        step: Global step.
        layout: Which element of which shard is what.
        shards: One entry a shard.
        specification: What the shards were told; `shard` and `layout` are not set.
        progress: What the chief knew, for whoever resumes.
    """

    directory: str
    step: int
    layout: Layout
    shards: tuple[ShardFile, ...]
    specification: pb.ShardSpecification = field(default_factory=pb.ShardSpecification)
    progress: Mapping[str, Any] = field(default_factory=dict)

    def parameters(self, average: bool = False) -> list[np.ndarray]:
        """One flat float32 vector a shard: the parameters, or their average.

        Raises:
            ValueError: A file is missing or damaged, or has no average.
        """
        name = "slot.average" if average else "parameters"
        return [self.open(shard).vector(name) for shard in range(self.layout.num_shards)]

    def verify(self, shards: Collection[int] | None = None) -> None:
        """Reads the files of some shards, all by default, and compares them with their checksums.

        Raises:
            Damaged: One is not what was written.
            ValueError: One cannot be read.
        """
        chosen = range(self.layout.num_shards) if shards is None else shards
        with ThreadPoolExecutor(_NUM_VERIFIED) as pool:
            list(pool.map(lambda shard: self.open(shard).verify(), chosen))

    def is_whole(self) -> bool:
        """Whether all its files are still there."""
        names = Folder(self.directory).names()
        return all(shard.file in names for shard in self.shards)

    def open(self, shard: int) -> TensorFile:
        """A shard's file.

        Raises:
            Damaged: It is missing, or not one.
        """
        return TensorFile(Folder(self.directory), self.shards[shard])


class TensorFile:
    """One shard's file, read piece by piece; every piece is compared with its checksum.

    Raises:
        Damaged: The file is missing, or its header is damaged; as do all methods for what they read.
        ValueError: It cannot be read.
    """

    def __init__(self, folder: Folder, entry: ShardFile) -> None:
        self._folder, self._entry = folder, entry
        self._buffer = np.empty(0, np.uint8)  # what was read last; one for all, since fresh memory is slow
        self._cached = "", 0, self._buffer  # tensor, block and content, if it was one
        self._data = 8 + min(int.from_bytes(self._read(0, 8).tobytes(), "little"), _LONGEST_HEADER_BYTES)
        header = self._read(8, self._data).tobytes()
        try:
            self._offsets: dict[str, list[int]] = {
                name: tensor["data_offsets"] for name, tensor in json.loads(header).items() if name != "__metadata__"
            }
            sizes = {name: last - first for name, (first, last) in self._offsets.items()}
            # A file lacks the checksums of a tensor without blocks.
            blocks = {name: -(-size // _BLOCK_BYTES) for name, size in sizes.items() if size}
            wrong = blocks != {name: len(sums) for name, sums in entry.checksums.items() if sums}
        except (KeyError, TypeError, AttributeError, ValueError):
            wrong = True
        if wrong:
            raise self._damaged("its header")

    @cached_property
    def names(self) -> list[str]:
        """Of its tensors."""
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
        """Reads all of it and keeps nothing."""
        for name in self._offsets:
            for _ in self.pieces(name):
                pass

    def _blocks(self, name: str, block: int, stop: int) -> np.ndarray:
        """Whole blocks from one on, enough to reach byte `stop` of the tensor or as many as are read at a time."""
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
        """Bytes [start, stop), or as many as there are; overwritten by the next."""
        if self._buffer.size < stop - start:
            self._buffer = np.empty(stop - start, np.uint8)
        self._cached = "", 0, self._buffer[:0]
        try:
            return self._buffer[: self._folder.read_into(self._entry.file, start, self._buffer[: stop - start])]
        except FileNotFoundError:
            raise Damaged(f"{self._folder.url}/{self._entry.file} is missing{_HINT}") from None
        except StorageError as error:
            if error.errno == errno.EIO:
                raise self._damaged(str(error)) from None
            raise ValueError(str(error)) from None

    def _damaged(self, what: str) -> Damaged:
        return Damaged(f"{self._folder.url}/{self._entry.file} is damaged: {what}{_HINT}")


def write_shard(
    directory: str | os.PathLike[str], specification: pb.ShardSpecification, snapshot: Snapshot
) -> pb.WriteCheckpointReply:
    """Writes one shard's file, piece by piece, and returns its name and checksums.

    Raises:
        CheckpointFailed: The folder cannot be written, or the disk is full.
    """
    num_shards = from_canonical(specification.layout).num_shards
    name = f"shard-{specification.shard:05d}-of-{num_shards:05d}.safetensors"
    checksums: dict[str, list[int]] = {}
    try:
        Folder(directory).write(name, _safetensors(specification, snapshot, checksums))
    except OSError as error:
        raise CheckpointFailed(f"shard {specification.shard}: {error}") from None
    counters = snapshot.records["counters"][0]
    reply = pb.WriteCheckpointReply(file=name, version=int(counters["version"]), pushes=int(counters["pushes"]))
    for tensor, blocks in checksums.items():
        reply.checksums.add(tensor=tensor, blocks=blocks)
    return reply


def write_manifest(checkpoint: Checkpoint) -> None:
    """Makes a folder whose files are all written a checkpoint.

    Raises:
        CheckpointFailed: The manifest cannot be written.
    """
    document = {
        "format": _FORMAT,
        "step": checkpoint.step,
        "shards": [vars(shard) for shard in checkpoint.shards],
        "specification": json_format.MessageToDict(checkpoint.specification),
        "progress": checkpoint.progress,
        "layout": checkpoint.layout.canonical,
    }
    document[_CHECKSUM] = _checksum(document)
    folder = Folder(checkpoint.directory)
    try:
        for name in folder.names():
            # Of a shard that died while it wrote, or of a damaged checkpoint of this step.
            if name.startswith(".shard-") or name == SET_ASIDE:
                folder.remove(name)
        folder.write(MANIFEST, [json.dumps(document, indent=1).encode() + b"\n"])
    except OSError as error:
        raise CheckpointFailed(str(error)) from None


def discard(directory: str | os.PathLike[str]) -> None:
    """Removes what was written of a checkpoint that failed; of a complete one in the same folder nothing."""
    folder = Folder(directory)
    try:
        names = folder.names()
        if MANIFEST not in names:
            parent, _, name = folder.url.rpartition("/")
            if name in Folder(parent).names():
                Folder(parent).remove(name)
            return
        whole = {MANIFEST, *(shard.file for shard in load(folder.url).shards)}
        for name in names:
            if name not in whole:
                folder.remove(name)
    except (OSError, ValueError) as error:
        logging.warning("what was written of a checkpoint in %s stays there: %s", folder.url, error)


def set_aside(directory: str | os.PathLike[str]) -> None:
    """Renames the manifest of a damaged checkpoint, which makes it none for everybody."""
    try:
        Folder(directory).rename(MANIFEST, SET_ASIDE)
    except OSError as error:
        logging.warning("%s is damaged and cannot be marked so: %s", directory, error)


def load(directory: str | os.PathLike[str]) -> Checkpoint:
    """Reads a checkpoint's manifest.

    Raises:
        Damaged: It is not what was written.
        ValueError: There is none, or this version cannot read it.
    """
    folder = Folder(directory)
    path = f"{folder.url}/{MANIFEST}"
    try:
        document = json.loads(folder.read(MANIFEST))
        checksum = document.pop(_CHECKSUM, None)
        if checksum not in (None, _checksum(document)):  # an earlier version wrote none
            raise Damaged(f"{path} is damaged: its checksum differs{_HINT}")
        if document["format"] != _FORMAT:
            hint = "a newer version of Downpour wrote it" if document["format"] > _FORMAT else "an older one did"
            raise ValueError(f"{path} has format {document['format']}, this version reads format {_FORMAT}; {hint}")
        saved = Checkpoint(
            folder.url,
            int(document["step"]),
            _layout(document["layout"], path),
            tuple(ShardFile(**shard) for shard in document["shards"]),
            json_format.ParseDict(document["specification"], pb.ShardSpecification()),
            dict(document["progress"]),
        )
    except FileNotFoundError:
        raise ValueError(f"{folder.url} is not a complete checkpoint: it has no {MANIFEST}") from None
    except StorageError as error:
        raise ValueError(str(error)) from None
    except (
        KeyError,
        TypeError,
        AttributeError,
        json.JSONDecodeError,
        json_format.ParseError,
        UnicodeDecodeError,
    ) as error:
        raise Damaged(f"{path} is damaged: {error!r}{_HINT}") from None
    if len(saved.shards) != saved.layout.num_shards:
        raise Damaged(f"{path} is damaged: {len(saved.shards)} files of {saved.layout.num_shards} shards{_HINT}")
    return saved


def complete(folder: Folder) -> list[str]:
    """Names of the complete checkpoints in a folder of checkpoints, oldest first.

    Raises:
        StorageError: The folder cannot be read.
    """
    return [name for name in folder.names() if name.startswith("step-") and MANIFEST in (folder / name).names()]


def newest(
    folder: Folder,
    check: Callable[[Checkpoint], None] = Checkpoint.verify,
    passed_over: Callable[[str], None] = lambda directory: None,
    job_id: str = "",
) -> Checkpoint | None:
    """The newest complete checkpoint in a folder of checkpoints that is what was written; None without a complete one.

    Damaged ones are passed over, with one warning that names them.

    Args:
        folder: Of the checkpoints.
        check: Reads what will be needed of one, and raises `Damaged`; by default all of it.
        passed_over: Called with the folder of each damaged one, once a good one is found.
        job_id: Whose it must be; empty for any. Those of older versions name no job, and are taken.

    Raises:
        Damaged: There are complete ones, and all are damaged; the message names each.
        ValueError: One cannot be read.
        StorageError: The folder cannot be read.
    """
    damaged: dict[str, str] = {}
    for name in reversed(complete(folder)):
        directory = f"{folder.url}/{name}"
        try:
            saved = load(directory)
            if job_id and saved.specification.job_id not in ("", job_id):
                continue
            check(saved)
        except Damaged as error:
            damaged[directory] = str(error).removesuffix(_HINT)
            continue
        if damaged:
            logging.warning("passed over: %s; the checkpoint used is %s", "; ".join(damaged.values()), saved.directory)
        for directory in damaged:
            passed_over(directory)
        return saved
    if damaged:
        what = "; ".join(damaged.values())
        raise Damaged(f"no checkpoint in {folder.url} can be used, all {len(damaged)} are damaged: {what}")
    return None


def to_resume(folder: Folder) -> str:
    """Folder of the newest complete checkpoint.

    Raises:
        ValueError: There is none.
    """
    names = complete(folder)
    if not names:
        raise ValueError(
            f"--resume, but {folder.url} has no complete checkpoint; give the folder of a run that has written one, "
            "or leave --resume out to begin anew"
        )
    return f"{folder.url}/{names[-1]}"


def superseded(names: Sequence[str], keep_last: int, keep_every: int) -> list[str]:
    """Of checkpoints `step-N`, oldest first, those that need not be kept.

    Args:
        names: All there are.
        keep_last: How many of the newest are kept.
        keep_every: The first checkpoint at or after each multiple of so many steps is kept, too; 0 for none.
    """
    periods = [int(name.removeprefix("step-")) // keep_every if keep_every else 0 for name in names]
    return [
        name
        for i, name in enumerate(names[: max(0, len(names) - keep_last)])
        if periods[i] == 0 or (i > 0 and periods[i] == periods[i - 1])
    ]


def _checksum(document: Mapping[str, Any]) -> int:
    return int(google_crc32c.value(json.dumps(document, sort_keys=True).encode()))


def _layout(text: str, path: str) -> Layout:
    try:
        return from_canonical(text)
    except ValueError as error:
        raise Damaged(f"{path} is damaged: {error}{_HINT}") from None


def _safetensors(
    specification: pb.ShardSpecification, snapshot: Snapshot, checksums: dict[str, list[int]]
) -> Iterator[Any]:
    """A file in the safetensors format, in pieces; fills in the checksums as they are taken.

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
        raw = piece.tobytes()  # the checksum takes nothing else
        checksums.setdefault(snapshot.names[number // num_blocks], []).append(google_crc32c.value(raw))
        yield raw
    for name, record in integers.items():
        raw = record.tobytes()
        checksums[name] = [google_crc32c.value(raw[at : at + _BLOCK_BYTES]) for at in range(0, len(raw), _BLOCK_BYTES)]
        yield raw
