"""Gives a process a wall clock that can be set from outside. Python imports this module at start if it is on its path.

`tests.chaos.harness` puts this folder on PYTHONPATH and names a folder in CHAOS_CLOCKS. A file ROLE or ROLE-INDEX there
holds the seconds by which that process' `time.time` and `time.time_ns` are ahead. Once the process has read a new
value from its clock, ROLE.seen holds it. gRPC's own code keeps the true clock: its deadlines are compared with the
kernel's clock, which is not shifted.
"""

import contextlib
import os
import sys
import time
from pathlib import Path

with contextlib.suppress(ImportError):  # what the module of this name in `tests/lean` does, which is not found now
    import keras_alone  # noqa: F401

_LOOK_EVERY_S = 0.2


class _Clock:
    """The shifted clock of this process."""

    def __init__(self, folder: Path, name: str) -> None:
        self._file, self._seen = folder / name, folder / f"{name}.seen"
        self._real, self._real_ns = time.time, time.time_ns
        self._ahead_s, self._look_at = 0.0, 0.0

    def time(self) -> float:
        return self._real() + self._ahead(sys._getframe(1).f_globals.get("__name__", ""))

    def time_ns(self) -> int:
        return self._real_ns() + round(1e9 * self._ahead(sys._getframe(1).f_globals.get("__name__", "")))

    def _ahead(self, caller: str) -> float:
        if caller.partition(".")[0] == "grpc":
            return 0.0
        if time.monotonic() >= self._look_at:
            self._look_at = time.monotonic() + _LOOK_EVERY_S
            self._look()
        return self._ahead_s

    def _look(self) -> None:
        try:
            text = self._file.read_text()
            ahead_s = float(text or 0)
        except OSError:
            return
        if ahead_s != self._ahead_s:
            self._ahead_s = ahead_s
            self._seen.write_text(text)


def _name() -> str:
    """Of this process, `ps-3` or `chief`; empty if it is none of Downpour's roles."""
    words = sys.orig_argv
    role = next((word.rpartition(".")[2] for word in words if word.startswith("downpour.launch.")), "")
    index = next((word.partition("=")[2] for word in words if word.startswith("--index=")), "")
    return f"{role}-{index}" if index else role


if os.environ.get("CHAOS_CLOCKS") and _name():
    _clock = _Clock(Path(os.environ["CHAOS_CLOCKS"]), _name())
    time.time, time.time_ns = _clock.time, _clock.time_ns
