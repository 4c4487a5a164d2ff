"""Digests of a job's arrays, by which its processes compare their data.

The file of an array is digested once, when it is written, into `SHA256SUMS` beside it; `sha256sum --check SHA256SUMS`
checks every byte of these files. A process that starts reads the digest, and a few pages of the array, so that data
which have been replaced since are noticed; an array without such a file is digested whole, and an array of
objects (strings) by their types and values.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

SUMS = "SHA256SUMS"
_NUM_SAMPLES, _SAMPLE_BYTES = 64, 4096


def record(folder: Path, paths: Iterable[Path]) -> None:
    """Writes the digests of files of a folder, as `sha256sum` does."""
    lines = [f"{_of_file(path)}  {path.name}\n" for path in paths]
    (folder / SUMS).write_text("".join(lines))


def of_array(value: np.ndarray) -> str:
    """The digest of an array, for comparison; of its file, if it is mapped whole from one."""
    if value.dtype.hasobject:
        return f"SHA-256 {_of_objects(value).hexdigest()[:16]}"
    path = _file_of(value)
    if path is None:
        return f"SHA-256 {hashlib.sha256(np.ascontiguousarray(value).tobytes()).hexdigest()[:16]}"
    return f"SHA-256 {(_recorded(path) or _of_file(path))[:16]}, samples {_of_samples(value)[:16]}"


def _of_objects(value: np.ndarray) -> Any:
    """SHA-256 of types and values; an array of objects holds only their addresses."""
    found = hashlib.sha256()
    for one in value.flat:
        if isinstance(one, np.ndarray):
            text = f"{one.dtype}{list(one.shape)} of {of_array(one)}"
        else:
            text = one if isinstance(one, str) else repr(one)
        encoded = text.encode(errors="surrogatepass")
        found.update(b"%s %d " % (type(one).__qualname__.encode(), len(encoded)))
        found.update(encoded)
    return found


def _file_of(value: np.ndarray) -> Path | None:
    """The file that an array is mapped from, if it is all of that file's array."""
    mapped = value if isinstance(value, np.memmap) else value.base
    if not isinstance(mapped, np.memmap) or not mapped.filename:
        return None
    is_all = (mapped.shape, mapped.strides, mapped.dtype) == (value.shape, value.strides, value.dtype)
    return Path(mapped.filename) if is_all and Path(mapped.filename).suffix == ".npy" else None


def _recorded(path: Path) -> str | None:
    try:
        lines = (path.parent / SUMS).read_text().splitlines()
    except FileNotFoundError:
        return None
    return next((digest for digest, _, name in (line.partition("  ") for line in lines) if name == path.name), None)


def _of_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _of_samples(value: np.ndarray) -> str:
    """SHA-256 of bytes at both ends and in between."""
    flat = value.ravel(order="K").view(np.uint8)
    found = hashlib.sha256()
    for start in np.linspace(0, max(len(flat) - _SAMPLE_BYTES, 0), _NUM_SAMPLES).astype(np.int64):
        found.update(flat[start : start + _SAMPLE_BYTES].data)
    return found.hexdigest()
