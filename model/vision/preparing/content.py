"""Reads the files of pictures, members of tar archives among them, and finds files with the same content.

A path `archive.tar#member` names a member of an uncompressed tar archive; each process reads the list of an archive's
members once.
"""

from __future__ import annotations

import hashlib
import os
import tarfile
from collections import defaultdict
from collections.abc import Iterable, Mapping
from functools import cache
from typing import NamedTuple

_TAR = ".tar"
_PROBE_BYTES = 4096


class Extent(NamedTuple):
    """Where the bytes of a picture lie: file, offset and number of bytes there, and when the file was last changed."""

    file: str
    offset: int
    size: int
    changed_ns: int


def extent(path: str) -> Extent:
    """Finds a picture's bytes without reading them.

    Raises:
        OSError: There is no such file, or the archive has no such member.
        ValueError: The archive is not an uncompressed tar file.
    """
    archive, separator, member = path.partition(f"{_TAR}#")
    if not separator:
        status = os.stat(path)
        return Extent(path, 0, status.st_size, status.st_mtime_ns)
    archive += _TAR
    offset, size = _members(archive).get(member, (-1, 0))
    if offset < 0:
        raise FileNotFoundError(f"{archive} has no member {member}")
    return Extent(archive, offset, size, os.stat(archive).st_mtime_ns)


def read(path: str) -> bytes:
    """All bytes of a picture; see `extent` for errors."""
    if f"{_TAR}#" not in path:
        with open(path, "rb", buffering=0) as file:
            return file.read()
    return _read(extent(path))


def same_content(extents: Mapping[str, Extent]) -> list[list[str]]:
    """Groups of two and more names whose pictures have the same bytes; empty ones belong to no group.

    Only pictures of equal length are read: 4 KB out of the middle, and all of it if those agree, too. So a set without
    copies costs at most 4 KB a picture. A file that cannot be read is left out.
    """
    groups = _together({name: (each.size,) for name, each in extents.items() if each.size}.items())
    for num_bytes in (_PROBE_BYTES, 0):
        digests = [(name, _digest(extents[name], num_bytes)) for group in groups for name in group]
        groups = _together((name, (extents[name].size, digest)) for name, digest in digests if digest)
    return groups


def _together(keys: Iterable[tuple[str, tuple[object, ...]]]) -> list[list[str]]:
    groups: dict[tuple[object, ...], list[str]] = defaultdict(list)
    for name, key in keys:
        groups[key].append(name)
    return [group for group in groups.values() if len(group) > 1]


def _digest(extent: Extent, num_bytes: int) -> bytes:
    """SHA-256 of `num_bytes` out of the middle; 0 for all. Empty if the file cannot be read."""
    if 0 < num_bytes < extent.size:
        extent = extent._replace(offset=extent.offset + (extent.size - num_bytes) // 2, size=num_bytes)
    try:
        return hashlib.sha256(_read(extent)).digest()
    except OSError:
        return b""


def _read(extent: Extent) -> bytes:
    with open(extent.file, "rb", buffering=0) as file:
        file.seek(extent.offset)
        return file.read(extent.size)


@cache
def _members(archive: str) -> dict[str, tuple[int, int]]:
    """Offset and size of every member of a tar archive that is a file."""
    try:
        with tarfile.open(archive, "r:") as tar:
            return {member.name: (member.offset_data, member.size) for member in tar if member.isfile()}
    except tarfile.ReadError as error:
        raise ValueError(f"{archive} is no uncompressed tar file ({error}); unpack it and name the folder") from error
