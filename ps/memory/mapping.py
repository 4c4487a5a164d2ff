"""A locked, memory-mapped file: one process maps it at a time, with reserved blocks and, where possible, huge pages.

`downpour.ps.memory.arena` has what is in it. Threads: none of its own.
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import sys
import time
from pathlib import Path

import numpy as np

from downpour.ps.testing.points import reach

HUGE_PAGE = 2 << 20
COLLAPSE = 25  # MADV_COLLAPSE, since Linux 6.1; Python's mmap has no name for it
_MOST_FILLERS = 10
_COLLAPSED_AT_A_TIME = 8 * HUGE_PAGE
_COLLAPSE_WITHIN_S = 1.0  # where memory is fragmented, the kernel compacts it first


def lock_and_map(path: Path, num_bytes: int, *, empty: bool) -> tuple[mmap.mmap, int]:
    """Locks a file, makes it if there is none, and maps it.

    Args:
        path: The file.
        num_bytes: Size of the mapping, and of the file if it is emptied.
        empty: Whether its content is removed first.

    Returns:
        The mapping and the descriptor, which holds the lock until `unlock`.

    Raises:
        ValueError: Another process holds the lock.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise ValueError(f"the arena {path} belongs to a running shard; stop it or give another --arena") from None
    if empty:
        os.ftruncate(descriptor, 0)  # what an interrupted creation left
        reach("arena.emptied")
        os.ftruncate(descriptor, num_bytes)
    return map_aligned(descriptor, num_bytes), descriptor


def map_aligned(descriptor: int, num_bytes: int) -> mmap.mmap:
    """Maps a file at a multiple of the size of huge pages, which they need, if such an address can be had.

    Python's mmap lets the kernel choose the address: the end of the highest gap that is large enough. So the excess
    over the multiple is filled, in that gap, and the next try is aligned, or lies at the end of the next gap.
    """
    fillers = list[mmap.mmap]()
    whole = -(-num_bytes // HUGE_PAGE) * HUGE_PAGE
    while True:
        memory = mmap.mmap(descriptor, num_bytes)
        beyond = int(np.frombuffer(memory, np.uint8).ctypes.data) % HUGE_PAGE
        if not beyond or num_bytes < HUGE_PAGE or len(fillers) == _MOST_FILLERS:
            return memory
        memory.close()
        fillers.append(mmap.mmap(-1, whole + beyond, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, mmap.PROT_READ))


def use_huge_pages(memory: mmap.mmap, descriptor: int) -> None:
    """Fills a new file with huge pages, where the system supports it (Linux 6.1, tmpfs; whatever its settings say).

    They are allocated in a fifth of the time, and access through them is a twentieth faster. Each begins as a small
    page written through the file, since without room the mapping would end the process with SIGBUS.
    """
    if sys.platform != "linux":
        return
    end = time.monotonic() + _COLLAPSE_WITHIN_S
    whole = len(memory) // HUGE_PAGE * HUGE_PAGE
    with contextlib.suppress(OSError):  # no room, or no huge pages
        for start in range(0, whole, _COLLAPSED_AT_A_TIME):
            if time.monotonic() > end:
                return
            stop = min(start + _COLLAPSED_AT_A_TIME, whole)
            for at in range(start, stop, HUGE_PAGE):
                os.pwrite(descriptor, b"\0", at)
                memory[at]  # maps it
            with contextlib.suppress(BlockingIOError):  # refused for now: these pages stay small
                memory.madvise(COLLAPSE, start, stop - start)


def reserve(descriptor: int, path: Path, start: int, stop: int, *, made_now: bool = True) -> None:
    """Reserves blocks now: a full disk must be an error here, not a SIGBUS in the middle of an update.

    A file that was `made_now` is removed when there is no room; an older one stays.

    Raises:
        ValueError: There is no room; the descriptor is unlocked and closed.
    """
    if start == stop:  # a shard without values; posix_fallocate refuses an empty range
        return
    try:
        os.posix_fallocate(descriptor, start, stop - start)
    except OSError as error:
        unlock(descriptor)
        if made_now:
            with contextlib.suppress(OSError):
                path.unlink()
        raise ValueError(f"no room for the arena {path}, bytes {start:,} to {stop:,}: {error.strerror}") from None


def unlock(descriptor: int) -> None:
    """Releases the file's lock; closing the descriptor alone would not, since the mapping has one of its own."""
    fcntl.flock(descriptor, fcntl.LOCK_UN)
    os.close(descriptor)
