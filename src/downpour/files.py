"""Replaces files atomically: a file has its old content or all of its new content, whatever ends the process.

A new file is written beside the old one under a temporary name, then renamed. A process that is killed while it writes
may leave the temporary file, whose name begins with a dot; whoever replaces the same file an hour later removes it.

Imports no other module of the package, so that each of its folders may use this one. Threads: any; if two replace the
same file at the same time, the file is one of theirs.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

_ABANDONED_S = 3600.0  # a temporary file that was last written to so long ago is not being written by any process


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str], *, durable: bool = False, ending: str = "") -> Iterator[Path]:
    """Yields a path for a new file or folder, which gets the name `path` when the block has succeeded.

    If the block or the renaming fails, what was written is removed and `path` is as it was before.

    Args:
        path: The file to replace, or a name that is free. A folder can be replaced only if it is empty.
        durable: Whether the new file survives a loss of power: its content and its name are synced to the disk.
        ending: Ending of the path that is yielded, for writers that read the format from it.

    Raises:
        OSError: The file cannot be renamed or synced.
    """
    path = Path(path)
    _remove_abandoned(path, ending)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part{ending}")
    try:
        yield temporary
        if durable:
            _sync(temporary)
        os.replace(temporary, path)
    except BaseException:
        remove(temporary)
        raise
    if durable:
        _sync(path.parent)


def write(path: str | os.PathLike[str], content: str | bytes, *, durable: bool = False, mode: int = 0o666) -> None:
    """Replaces a file by one with this content; a text is written as UTF-8.

    Args:
        path: The file.
        content: Its new content.
        durable: See `replacing`.
        mode: Permissions of the new file before the process's umask, from its first moment on.

    Raises:
        OSError: It cannot be written; the file is as it was before.
    """
    with replacing(path, durable=durable) as temporary:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        with open(descriptor, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)


def remove(path: Path) -> None:
    """Removes a file, or a folder with its content, as far as it can be removed; no error if it is missing."""
    with contextlib.suppress(OSError):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _remove_abandoned(path: Path, ending: str) -> None:
    """Removes what killed processes have left of replacing `path`; what may still be written is kept."""
    name = re.compile(rf"\.{re.escape(path.name)}\.[0-9a-f]{{8}}\.part{re.escape(ending)}")
    before = time.time() - _ABANDONED_S
    with contextlib.suppress(OSError), os.scandir(path.parent) as entries:
        for entry in entries:
            if name.fullmatch(entry.name) and entry.stat(follow_symlinks=False).st_mtime < before:
                remove(Path(entry.path))


def _sync(path: Path) -> None:
    """Syncs a file or a folder to its disk; some file systems cannot sync folders, and say so by EINVAL."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
    finally:
        os.close(descriptor)
