"""The checkpoints of a run, and whether each is whole."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from downpour.ps.checkpoint import manifest as checkpoint
from downpour.ps.checkpoint.shard_file import HINT, Damaged
from downpour.ps.checkpoint.storage import Folder, StorageError

_VERIFIED_BYTES = 1 << 30  # of one checkpoint; larger ones are not read for a report


@dataclass(frozen=True)
class Saved:
    """A checkpoint of a run.

    Attributes:
        step: Its global step.
        is_whole: Whether it can be resumed from, as far as it was examined.
        words: What was found, for people.
        size_bytes: Size of its files; None in an object store.
    """

    step: int
    is_whole: bool
    words: str
    size_bytes: int | None = None


def checkpoints_of(run_dir: Path, newest: str) -> tuple[Saved, ...]:
    """Examines the checkpoints of a run, oldest first; none where they cannot be read.

    Args:
        run_dir: Folder of the run.
        newest: Path or URL of its newest checkpoint, as its journal knows it; "" for none.
    """
    inside = run_dir / "checkpoints"
    place = str(inside) if inside.is_dir() else newest.rpartition("/")[0]
    if not place:
        return ()
    try:
        folder = Folder(place)
        return tuple(_examined(folder, name) for name in folder.names() if name.startswith("step-"))
    except (ValueError, StorageError):
        return ()


def _examined(folder: Folder, name: str) -> Saved:
    digits = name.removeprefix("step-")
    step, one = int(digits) if digits.isdecimal() else 0, folder / name
    names = one.names()
    size = _size_bytes(Path(one.url)) if Path(one.url).is_dir() else None
    if checkpoint.MANIFEST not in names:
        words = "damaged, set aside by the chief" if checkpoint.SET_ASIDE in names else "incomplete: it has no manifest"
        return Saved(step, False, words, size)
    try:
        saved = checkpoint.load(one.url)
        if not saved.is_whole():
            return Saved(step, False, "damaged: files are missing", size)
        if size is None or size > _VERIFIED_BYTES:
            return Saved(step, True, "all files are there; checksums were not compared, since it is large", size)
        saved.verify()
    except Damaged as error:
        return Saved(step, False, f"damaged: {str(error).removesuffix(HINT).replace(f'{one.url}/', '')}", size)
    except (ValueError, StorageError) as error:
        return Saved(step, False, f"cannot be read: {error}", size)
    return Saved(step, True, "whole: all checksums match", size)


def _size_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir() if path.is_file())
