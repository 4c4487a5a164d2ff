"""Makes a running process short of threads or descriptors, so that to start or to open one more really fails.

Threads: by a cgroup of the controller `pids`, which takes root and binds it, where RLIMIT_NPROC does not; without root
by RLIMIT_NPROC, which counts all threads of the user. Descriptors: by RLIMIT_NOFILE.
"""

from __future__ import annotations

import contextlib
import os
import resource
from collections.abc import Iterator
from pathlib import Path

import psutil

_CGROUPS = (Path("/sys/fs/cgroup/pids"), Path("/sys/fs/cgroup"))  # version 1, version 2


class Unavailable(Exception):
    """This machine does not allow it."""


@contextlib.contextmanager
def few_threads(pid: int, more: int) -> Iterator[None]:
    """A process may start so many threads beside those that it has."""
    if os.getuid():
        limit = _threads_of(os.getuid()) + more, resource.RLIM_INFINITY
        before = resource.prlimit(pid, resource.RLIMIT_NPROC, limit)
        yield
        _restore(pid, resource.RLIMIT_NPROC, before)
        return
    folder = _new_cgroup(f"downpour-strangers-{pid}")
    try:
        (folder / "cgroup.procs").write_text(str(pid))
        (folder / "pids.max").write_text(str(psutil.Process(pid).num_threads() + more))
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):  # it has ended
            (folder.parent / "cgroup.procs").write_text(str(pid))
        folder.rmdir()


@contextlib.contextmanager
def few_descriptors(pid: int, more: int) -> Iterator[None]:
    """A process may open so many files and sockets beside those that it has."""
    _, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    before = resource.prlimit(pid, resource.RLIMIT_NOFILE, (psutil.Process(pid).num_fds() + more, hard))
    yield
    _restore(pid, resource.RLIMIT_NOFILE, before)


def _restore(pid: int, kind: int, limits: tuple[int, int]) -> None:
    with contextlib.suppress(ProcessLookupError):  # it has ended
        resource.prlimit(pid, kind, limits)


def _threads_of(user: int) -> int:
    processes = psutil.process_iter(["uids", "num_threads"])
    return sum(one.info["num_threads"] for one in processes if one.info["uids"] and one.info["uids"].real == user)


def _new_cgroup(name: str) -> Path:
    for root in _CGROUPS:
        folder = root / name
        try:
            folder.mkdir()
        except OSError:  # none of this version, or it cannot be written
            continue
        if (folder / "pids.max").exists():
            return folder
        folder.rmdir()
    raise Unavailable("root's threads can be limited by a cgroup only, and none with `pids` can be made here")
