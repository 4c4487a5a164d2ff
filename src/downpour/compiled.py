"""Compiles functions with numba on first use, or loads them from the cache beside their source.

Where numba can write no cache (a read-only installation without a home), it uses a folder of this user's in the
temporary folder; where that cannot be written either, every process compiles for itself. Threads: any.
"""

from __future__ import annotations

import functools
import os
import stat
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from absl import logging
from numba import config, njit, types

Loop = Callable[..., Any]


def declared(*arguments: types.Type, returns: types.Type = types.void) -> Callable[[Loop], Callable[[], Loop]]:
    """Declares the types of a loop; the function returned compiles or loads the loop on its first call."""
    return declared_for([returns(*arguments)])


def declared_for(signatures: list[Any]) -> Callable[[Loop], Callable[[], Loop]]:
    """Declares a loop with several signatures; see `declared`."""

    def declare(function: Loop) -> Callable[[], Loop]:
        @functools.cache
        def compiled() -> Loop:
            try:
                return _compile(function, signatures, cache=True)
            except (RuntimeError, OSError):  # numba: "no locator available", a full disk
                cache = _use_temporary_cache()
            try:
                return _compile(function, signatures, cache)
            except (RuntimeError, OSError):
                return _compile(function, signatures, cache=False)

        return compiled

    return declare


def _compile(function: Loop, signatures: list[Any], cache: bool) -> Loop:
    compiler: Callable[[Loop], Loop] = njit(signatures, cache=cache, nogil=True, error_model="numpy")
    return compiler(function)


@functools.cache
def _use_temporary_cache() -> bool:
    """Sets numba's cache to a folder in the temporary folder and logs it; returns whether it can be used.

    Code loaded from the folder is executed, so only this user may have access to it.
    """
    try:
        folder = Path(tempfile.gettempdir()) / f"downpour-kernels-{os.getuid()}"
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
            raise PermissionError(f"{folder} is not a folder to which only this user has access")
    except OSError as error:
        logging.warning("numba can write no cache (%s), so this process compiles its loops itself", error)
        return False
    config.CACHE_DIR = str(folder)
    logging.warning(
        "numba can write no cache in NUMBA_CACHE_DIR, beside its source or in the home folder; it uses %s", folder
    )
    return True
