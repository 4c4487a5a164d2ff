"""What processes use: processor time, and peak memory as RSS and as PSS, which divides a page's size among its users.

Read from Linux' `/proc`; elsewhere RSS comes from psutil and PSS is unknown.
"""

from __future__ import annotations

import contextlib
import ctypes
import re
from collections.abc import Mapping
from pathlib import Path

import psutil

_MB = 1 << 20
_MADV_DONTNEED = 4
# Of /proc/self/smaps: a library's mapping that is not writable, without a page that differs from the file's.
_MAPPING = re.compile(
    r"^(?P<first>[0-9a-f]+)-(?P<last>[0-9a-f]+) r-[x-]p [^\n]*/[^\n]*\.so[.\d]*\n"
    r"(?:(?!Anonymous:)[A-Za-z_]+:[^\n]*\n)*Anonymous: +0 kB$",
    re.MULTILINE,
)
_SIZE = re.compile(rb"^(VmHWM|Pss):\s+(\d+) kB", re.MULTILINE)


class PeakMemory:
    """The highest observed RSS and PSS of every named process, in bytes, and its processor time, in seconds."""

    def __init__(self) -> None:
        self.rss: dict[str, int] = {}
        self.pss: dict[str, int] = {}
        self.processor_s: dict[tuple[str, int], float] = {}  # by name and pid: one that is started again begins at 0

    def sample(self, pids: Mapping[str, int]) -> None:
        """Samples processes by name; those that have ended are skipped."""
        for name, pid in pids.items():
            self.rss[name] = max(self.rss.get(name, 0), _rss_bytes(pid))
            self.pss[name] = max(self.pss.get(name, 0), _linux_bytes(pid, "smaps_rollup", b"Pss"))
            with contextlib.suppress(psutil.Error):
                times = psutil.Process(pid).cpu_times()
                self.processor_s[name, pid] = times.user + times.system

    def summary(self) -> dict[str, object]:
        """The largest process of each role, in MB; PSS of the shards also one by one, in order; processor seconds."""
        seconds: dict[str, float] = {}
        for (name, _), spent in self.processor_s.items():
            role = name.partition("/")[0]
            seconds[role] = round(seconds.get(role, 0.0) + spent, 1)
        shards = sorted((int(name[3:]), size) for name, size in self.pss.items() if name.startswith("ps/"))
        return {
            "peak_rss_mb": _by_role(self.rss),
            "peak_pss_mb": _by_role(self.pss),
            "peak_pss_mb_by_shard": [_mb(size) for _, size in shards],
            "processor_seconds": seconds,
        }


def release_libraries() -> None:
    """Takes the pages of shared libraries that this process has only read out of its memory, on Linux.

    Importing TensorFlow reads some 450 MB, of which most is not needed again; what is, comes back from the system's
    cache. Mappings that are writable or hold changed pages are left alone.
    """
    try:
        text = Path("/proc/self/smaps").read_text()
    except OSError:
        return
    advise = ctypes.CDLL(None, use_errno=True).madvise
    advise.argtypes = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int
    for mapping in _MAPPING.finditer(text):
        first, last = int(mapping["first"], 16), int(mapping["last"], 16)
        advise(first, last - first, _MADV_DONTNEED)


def _by_role(sizes: Mapping[str, int]) -> dict[str, float]:
    largest: dict[str, int] = {}
    for name, size in sizes.items():
        role = name.partition("/")[0]
        largest[role] = max(largest.get(role, 0), size)
    return {role: _mb(size) for role, size in largest.items()}


def _rss_bytes(pid: int) -> int:
    """Linux' own high-water mark, which misses nothing between two samples, else the present RSS."""
    mark = _linux_bytes(pid, "status", b"VmHWM")
    if mark:
        return mark
    try:
        return int(psutil.Process(pid).memory_info().rss)
    except psutil.Error:
        return 0


def _linux_bytes(pid: int, file: str, key: bytes) -> int:
    try:
        text = Path(f"/proc/{pid}/{file}").read_bytes()
    except OSError:
        return 0
    return sum(int(size) * 1024 for name, size in _SIZE.findall(text) if name == key)


def _mb(size: int) -> float:
    return round(size / _MB, 1)
