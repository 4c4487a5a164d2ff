"""A temporary folder that is removed after its launcher has ended, even by SIGKILL, unless it is kept.

Shards keep their state in memory-mapped files. Locally these are in memory (`/dev/shm`) if there is room, and a
launcher ended by SIGKILL cannot remove them; so every launcher holds a lock in its folder, and the next one removes the
folders whose lock is free. If the last steps of a run could not be written to a checkpoint, its folder is kept under a
name derived from the run folder's, and `--resume` continues from it.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_PREFIX, _KEPT, _LOCK = "downpour-", "kept-downpour-", "lock"
_MEMORY = Path("/dev/shm")

# A container's /dev/shm often has 64 MB. The paper's model with RMSProp takes 960 MB.
_ENOUGH_BYTES = 2 << 30


def default_parent() -> Path:
    """`/dev/shm` if there is enough room in it, else the system's temporary folder."""
    if _MEMORY.is_dir() and shutil.disk_usage(_MEMORY).free >= _ENOUGH_BYTES:
        return _MEMORY
    return Path(tempfile.gettempdir())


@contextmanager
def scratch_folder(parent: Path | None = None, kept: Path | None = None) -> Iterator[Path]:
    """A new folder under `parent` (`default_parent()` by default), removed at the end unless `keep` was called.

    Args:
        parent: Its parent folder.
        kept: A kept folder to use instead of a new one.

    Raises:
        ValueError: The kept folder is in use.
    """
    parent = parent or default_parent()
    remove_abandoned(parent)
    folder = kept or Path(tempfile.mkdtemp(prefix=_PREFIX, dir=parent))
    with (folder / _LOCK).open("ab") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"{folder} is in use by another run with the same --run_dir; wait for its end") from None
        try:
            yield folder
        except BaseException:
            if folder != kept:  # a kept folder stays until a checkpoint has its steps
                shutil.rmtree(folder, ignore_errors=True)
            raise
        shutil.rmtree(folder, ignore_errors=True)


def keep(folder: Path, run_dir: Path) -> Path:
    """Renames a scratch folder so that it stays, and `find_kept` finds it for this run; returns its new path."""
    if folder.name.startswith(_KEPT):
        return folder
    return folder.rename(folder.with_name(f"{_kept_prefix(run_dir)}{folder.name.removeprefix(_PREFIX)}"))


def find_kept(parent: Path | None, run_dir: Path) -> Path | None:
    """The folder that was kept for a run, if there is one and it is this user's.

    Args:
        parent: As given to `scratch_folder`; None for every folder that `default_parent` may choose.
        run_dir: Folder of the run.
    """
    parents = [parent] if parent else [_MEMORY, Path(tempfile.gettempdir())]
    found = [path for place in parents for path in place.glob(f"{_kept_prefix(run_dir)}*")]
    mine = [path for path in found if not path.is_symlink() and path.stat().st_uid == os.getuid()]
    return max(mine, key=lambda path: path.stat().st_mtime, default=None)


def _kept_prefix(run_dir: Path) -> str:
    return f"{_KEPT}{hashlib.sha256(os.fsencode(run_dir.resolve())).hexdigest()[:16]}-"


def remove_abandoned(parent: Path) -> list[Path]:
    """Removes the folders of launchers that have ended; returns their paths."""
    removed = []
    for lock in parent.glob(f"{_PREFIX}*/{_LOCK}"):
        if _nobody_holds(lock):
            shutil.rmtree(lock.parent, ignore_errors=True)
            removed.append(lock.parent)
    return removed


def _nobody_holds(path: Path) -> bool:
    try:
        with path.open("rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    except OSError:  # held, removed, or another user's
        return False
