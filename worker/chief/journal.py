"""The chief's journal: everything that a restarted chief needs, in one file that is replaced whole.

A state is staged while the chief's lock is held, and committed after that: a thread that waits for the disk does not
block access to the chief's state, and one write commits every state staged before it began (group commit). If the
file cannot be written (a full disk), that is logged once, the job continues, and the next commit tries again. It is
not synced to the disk, which every answer to a worker would wait for: after a loss of power it may be an older one, or
damaged, which its checksum shows.

Threads: any. `stage` is called with the chief's lock held, `commit` without it.
"""

from __future__ import annotations

import json
import threading
import time
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from absl import logging

from downpour import files

_LONGEST_GAP_S = 300.0  # workers do not train for longer without a chief: they need leases
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class Reluctant:
    """Writes a file; an error is logged and does not end the job.

    Args:
        path: Path of the file, for the log.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._is_failing = False

    def attempt(self, write: Callable[[], None]) -> bool:
        """Calls `write`; returns whether it succeeded, and logs when that changes. One thread at a time."""
        try:
            write()
        except OSError as error:
            if not self._is_failing:
                words = "%s cannot be written (%s); training continues, and the write is retried"
                logging.warning(words, self._path, error)
            self._is_failing = True
            return False
        if self._is_failing:
            logging.warning("%s can be written again", self._path)
        self._is_failing = False
        return True


class Journal:
    """The journal of one run.

    Args:
        path: Path of its file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = Reluctant(path)
        self._staged: tuple[int, Mapping[str, Any]] = 0, {}  # replaced whole, so that it can be read without a lock
        self._writing = threading.Lock()
        self._committed = 0  # guarded by `_writing`

    def stage(self, state: Mapping[str, Any]) -> int:
        """Stages the newest state, which must not change any more; returns its number for `commit`."""
        now = {"written_at": time.time(), "boot": _boot_id(), "written_s": time.monotonic()}
        number = self._staged[0] + 1
        self._staged = number, {**state, **now}
        return number

    def commit(self, number: int) -> None:
        """Returns when state `number` or a newer one is in the file, or could not be written."""
        with self._writing:
            if self._committed >= number:
                return
            newest, state = self._staged
            journal = json.loads(json.dumps(state))  # as `read` parses it, for the checksum
            text = json.dumps(journal | {"checksum": _checksum(journal)})
            self._file.attempt(lambda: files.write(self._path, text))
            self._committed = newest

    def read(self, job_id: str = "") -> dict[str, Any] | None:
        """Returns the file's state, with `gap_s`, the seconds since it was staged; None if there is none readable.

        With `job_id`, also None if it is another job's; journals of older versions name none and match any.

        The gap is measured by the monotonic clock as long as the machine has not rebooted. Otherwise it is that of the
        wall clocks, which may differ between machines: at least 0 and at most 300 s.
        """
        try:
            journal: dict[str, Any] = json.loads(self._path.read_text())
            if not isinstance(journal, dict) or journal.pop("checksum", None) not in (None, _checksum(journal)):
                raise ValueError("its checksum differs")
            journal["gap_s"] = _gap_s(journal)
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError) as error:
            logging.warning("%s cannot be read (%r)", self._path, error)
            return None
        except OSError as error:
            logging.warning("%s", error)
            return None
        return None if job_id and journal.get("job_id", job_id) != job_id else journal


def _checksum(journal: Mapping[str, Any]) -> int:
    """CRC-32 of a journal's content."""
    return zlib.crc32(json.dumps(journal, sort_keys=True).encode())


def _gap_s(journal: Mapping[str, Any]) -> float:
    """Seconds since a journal was staged."""
    if journal.get("boot") and journal["boot"] == _boot_id():
        return max(0.0, time.monotonic() - float(journal["written_s"]))
    return min(max(0.0, time.time() - float(journal["written_at"])), _LONGEST_GAP_S)


def _boot_id() -> str:
    """Returns an id that changes with every boot of the machine; empty where the system has none."""
    try:
        return _BOOT_ID.read_text().strip()
    except OSError:
        return ""
