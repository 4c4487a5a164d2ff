"""A temporary folder that does not outlive its launcher, not even one that was killed.

Shards keep their numbers in memory-mapped files. Locally these lie in memory (`/dev/shm`) where there is room, and a
launcher ended by SIGKILL cannot remove them; so every launcher holds a lock in its folder, and the next one removes the
folders whose lock nobody holds.
"""

from __future__ import annotations

import fcntl
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_PREFIX, _LOCK = "downpour-", "lock"
_MEMORY = Path("/dev/shm")

# A container's /dev/shm often has 64 MB. The paper's model with RMSProp takes 960 MB.
_ENOUGH_BYTES = 2 << 30


def default_parent() -> Path:
    """`/dev/shm` if there is enough room in it, else the system's temporary folder."""
    if _MEMORY.is_dir() and shutil.disk_usage(_MEMORY).free >= _ENOUGH_BYTES:
        return _MEMORY
    return Path(tempfile.gettempdir())


@contextmanager
def scratch_folder(parent: Path | None = None) -> Iterator[Path]:
    """A new folder under `parent` (`default_parent()` by default), removed at the end."""
    parent = parent or default_parent()
    remove_abandoned(parent)
    folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=parent))
    with (folder / _LOCK).open("wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def remove_abandoned(parent: Path) -> list[Path]:
    """Removes, and names, the folders of launchers that are gone."""
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
    except OSError:  # held, gone, or another user's
        return False
