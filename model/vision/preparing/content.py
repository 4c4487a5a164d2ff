"""Finds pictures with the same content among files and members of tar files, reading as little as that needs."""

from __future__ import annotations

import hashlib
import os
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from downpour.model.vision.preparing.items import place

_PROBE_BYTES = 4096


class Extent(NamedTuple):
    """Where the bytes of a picture lie: file, offset and number of bytes there, and when the file was last changed."""

    file: str
    offset: int
    size: int
    changed_ns: int


def extent(path: str) -> Extent:
    """Finds a picture's bytes, by `Item.path`, without reading them.

    Raises:
        OSError: There is no such file, or see `items.read_bytes`.
    """
    file, offset, size = place(path)
    state = os.stat(file)
    return Extent(file, offset, state.st_size if size < 0 else size, state.st_mtime_ns)


def same_content(extents: Mapping[str, Extent]) -> list[list[str]]:
    """Groups of two and more names whose pictures have the same bytes; empty ones belong to no group.

    Only pictures of equal length are read: 4 KB out of the middle, and all of it if those agree, too. So a set without
    copies costs at most 4 KB a picture. A file that cannot be read is left out.
    """
    groups = _together((name, (each.size,)) for name, each in extents.items() if each.size)
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
        with open(extent.file, "rb", buffering=0) as file:
            file.seek(extent.offset)
            return hashlib.sha256(file.read(extent.size)).digest()
    except OSError:
        return b""
