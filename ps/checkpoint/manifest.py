"""Checkpoints: one file a shard, and a manifest, written last by the chief.

The manifest holds the layout, checksums of the shards' files (see `shard_file`), the specification sent to the shards,
the chief's progress, and a checksum of itself. A folder without a manifest is not a checkpoint. Every file appears
under its name only when it is complete. The chief renames the manifest of a checkpoint that it has found damaged, so
that it no longer counts as one. Threads: any; nothing is shared.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import google_crc32c
import numpy as np
from absl import logging
from google.protobuf import json_format

from downpour.proto import parameter_server_pb2 as pb
from downpour.proto.errors import CheckpointFailed
from downpour.ps.checkpoint import shard_file
from downpour.ps.checkpoint.shard_file import HINT, Damaged, ShardFile, TensorFile
from downpour.ps.checkpoint.storage import Folder, StorageError
from downpour.ps.layout import Layout, from_canonical

MANIFEST, SET_ASIDE = shard_file.MANIFEST, "manifest.damaged.json"
_FORMAT = 2
_NUM_VERIFIED = 4  # files at a time; each takes a buffer of `Folder.read_bytes`
_CHECKSUM = "crc32c"  # of the manifest


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint.

    Attributes:
        directory: Path or URL of its folder.
        step: Global step.
        layout: Maps the elements of the shards' vectors to variables.
        shards: One entry a shard.
        specification: As sent to the shards; `shard` and `layout` are not set.
        progress: The chief's state, for resuming.
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
            Damaged: A file is not what was written.
            ValueError: A file cannot be read.
        """
        chosen = range(self.layout.num_shards) if shards is None else shards
        with ThreadPoolExecutor(_NUM_VERIFIED) as pool:
            list(pool.map(lambda shard: self.open(shard).verify(), chosen))

    def is_whole(self) -> bool:
        """Whether all its files still exist."""
        names = Folder(self.directory).names()
        return all(shard.file in names for shard in self.shards)

    def open(self, shard: int) -> TensorFile:
        """Opens a shard's file.

        Raises:
            Damaged: The file is missing, or its header is damaged.
            ValueError: The file cannot be read.
        """
        return TensorFile(Folder(self.directory), self.shards[shard])


def write_manifest(checkpoint: Checkpoint) -> None:
    """Writes the manifest, which makes a folder whose files are all written a checkpoint.

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
            # Left by a shard that stopped while writing, or by a damaged checkpoint of this step.
            if name.startswith(".shard-") or name == SET_ASIDE:
                folder.remove(name)
        folder.write(MANIFEST, [json.dumps(document, indent=1).encode() + b"\n"])
    except OSError as error:
        raise CheckpointFailed(str(error)) from None


def discard(directory: str | os.PathLike[str]) -> None:
    """Removes files that belong to no complete checkpoint, left by one that failed or an earlier one of this step."""
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
        logging.warning("the incomplete checkpoint in %s cannot be removed: %s", folder.url, error)


def set_aside(directory: str | os.PathLike[str]) -> None:
    """Renames the manifest of a damaged checkpoint, so that it no longer counts as one."""
    try:
        Folder(directory).rename(MANIFEST, SET_ASIDE)
    except OSError as error:
        logging.warning("%s is damaged and cannot be marked as damaged: %s", directory, error)


def load(directory: str | os.PathLike[str]) -> Checkpoint:
    """Reads a checkpoint's manifest.

    Raises:
        Damaged: The manifest is not what was written.
        ValueError: There is no manifest, or this version cannot read it.
    """
    folder = Folder(directory)
    path = f"{folder.url}/{MANIFEST}"
    try:
        document = json.loads(folder.read(MANIFEST))
        checksum = document.pop(_CHECKSUM, None)
        if checksum not in (None, _checksum(document)):  # an earlier version wrote none
            raise Damaged(f"{path} is damaged: its checksum differs{HINT}")
        if document["format"] != _FORMAT:
            hint = "a newer version of Downpour wrote it" if document["format"] > _FORMAT else "an older one wrote it"
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
        raise Damaged(f"{path} is damaged: {error!r}{HINT}") from None
    if len(saved.shards) != saved.layout.num_shards:
        raise Damaged(f"{path} is damaged: {len(saved.shards)} files of {saved.layout.num_shards} shards{HINT}")
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
    """Returns the newest complete, undamaged checkpoint in a folder of checkpoints; None without a complete one.

    Damaged ones are passed over, with one warning that names them.

    Args:
        folder: Folder of the checkpoints.
        check: Reads the parts of a checkpoint that will be needed, by default all; raises `Damaged`.
        passed_over: Called with the folder of each damaged one, once a good one is found.
        job_id: Job that wrote it; empty for any. Checkpoints of older versions name no job, and are accepted.

    Raises:
        Damaged: There are complete checkpoints, and all are damaged; the message names each.
        ValueError: A checkpoint cannot be read.
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
            damaged[directory] = str(error).removesuffix(HINT)
            continue
        if damaged:
            logging.warning("skipped: %s; the checkpoint used is %s", "; ".join(damaged.values()), saved.directory)
        for directory in damaged:
            passed_over(directory)
        return saved
    if damaged:
        what = "; ".join(damaged.values())
        raise Damaged(f"no checkpoint in {folder.url} can be used, all {len(damaged)} are damaged: {what}")
    return None


def to_resume(folder: Folder) -> str:
    """Returns the folder of the newest complete checkpoint.

    Raises:
        ValueError: There is no complete checkpoint.
    """
    names = complete(folder)
    if not names:
        raise ValueError(
            f"--resume, but {folder.url} has no complete checkpoint; give the folder of a run that has written one, "
            "or leave --resume out to begin anew"
        )
    return f"{folder.url}/{names[-1]}"


def superseded(names: Sequence[str], keep_last: int, keep_every: int, kept: Collection[int] = ()) -> list[str]:
    """Returns the checkpoints that need not be kept.

    Args:
        names: All checkpoints `step-N`, oldest first.
        keep_last: Number of the newest that are kept.
        keep_every: The first checkpoint at or after each multiple of this many steps is kept, too; 0 for none.
        kept: Steps of others that are kept.
    """
    steps = [int(name.removeprefix("step-")) for name in names]
    periods = [step // keep_every if keep_every else 0 for step in steps]
    return [
        name
        for i, name in enumerate(names[: max(0, len(names) - keep_last)])
        if steps[i] not in kept and (periods[i] == 0 or (i > 0 and periods[i] == periods[i - 1]))
    ]


def _checksum(document: Mapping[str, Any]) -> int:
    return int(google_crc32c.value(json.dumps(document, sort_keys=True).encode()))


def _layout(text: str, path: str) -> Layout:
    try:
        return from_canonical(text)
    except ValueError as error:
        raise Damaged(f"{path} is damaged: {error}{HINT}") from None
