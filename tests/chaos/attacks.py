"""How each kind of fault is carried out, and how it is known to have happened. Called by the main thread only.

`Attacks` makes the attack of a fault (`tests.chaos.schedule` has the table of kinds).
"""

from __future__ import annotations

import errno
import os
import random
import shutil
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import psutil

from downpour.launch.roles.entry import REFUSED
from tests.chaos import schedule
from tests.chaos.proxy import Proxies
from tests.chaos.schedule import Fault

Pids = Callable[[], Mapping[str, int]]

_BALLAST = "ballast"  # the file that fills a disk
_MOST_BALLAST_BYTES = 1 << 30  # what has more room is no disk for this
_SHIFTS_S = (3600.0, -7200.0, 86400.0, -60.0)


class Attack(Protocol):
    """One fault as it is carried out; the methods are called in their order, the middle two again and again."""

    def begin(self) -> bool:
        """Strikes; False if the target is not there, or not yet."""
        ...

    def has_fired(self) -> bool:
        """Whether it is seen to have happened."""
        ...

    def is_over(self, lasted_s: float) -> bool:
        """Whether there is nothing left to wait for."""
        ...

    def end(self) -> None:
        """Makes good what lasts."""
        ...


@dataclass(frozen=True)
class Places:
    """Where the job that is struck keeps its things.

    Attributes:
        run_dir: Of the chief; a small disk of its own where disks are filled.
        arenas: Of the shards, likewise.
        clocks: Where processes look for their clocks (`tests/chaos/clock`).
        log: Gets what intruders write.
    """

    run_dir: Path
    arenas: Path
    clocks: Path
    log: Path


@dataclass(frozen=True)
class Attacks:
    """Makes attacks on one job.

    Attributes:
        pids: Gives the process ids of what is running, by name.
        proxies: By the names of their servers.
        places: Of the job's files.
        command: Gives the command of a running process by its name.
    """

    pids: Pids
    proxies: Proxies
    places: Places
    command: Callable[[str], list[str]]

    def of(self, fault: Fault) -> Attack:
        """The attack of a fault."""
        role = fault.target.partition("/")[0]
        match fault.kind:
            case schedule.KILL:
                return _Kill(self.pids, fault)
            case schedule.PAUSE:
                return _Pause(self.pids, fault)
            case schedule.SHIFT:
                return _Shift(self.places.clocks, fault)
            case schedule.FILL if role == "ps":
                return _FillArenas(self.places.arenas, self.pids, fault)
            case schedule.FILL:
                return _Fill(self.places.run_dir, fault)
            case schedule.FLIP if role == "chief":
                return _DamageJournal(self.places.run_dir / "journal.json", self.pids, fault)
            case schedule.FLIP:
                return _DamageCheckpoint(self.places.run_dir / "checkpoints", fault)
            case schedule.INTRUDE:
                return _Intruder(self._intruder(fault), self.places.log)
            case _:
                return _Break(self.proxies, fault)

    def _intruder(self, fault: Fault) -> list[str]:
        """The command of one that must be refused."""
        role, _, index = fault.target.partition("/")
        words = [word for word in self.command(fault.target) if not word.startswith(("--port=", "--port_file="))]
        if role == "worker":
            return [*words, "--set=seed=4711"]
        if role == "ps":
            mine = self.places.arenas / f"ps-{index}.arena"
            copy = self.places.clocks / f"ps-{index}.copy"  # not on the disk that may be full
            shutil.copyfile(mine, copy)
            words = [word for word in words if not word.startswith(("--index=", "--arena="))]
            return [*words, f"--index={int(index) + 1}", f"--arena={copy}", "--port=0"]
        return [*words, "--port=0"]


class _OnProcess:
    """What a kill and a pause have in common: they find their process."""

    def __init__(self, pids: Pids, fault: Fault) -> None:
        self._pids, self._fault = pids, fault
        self._process = psutil.Process()

    def _find(self) -> bool:
        """Whether the target runs."""
        pid = self._pids().get(self._fault.target)
        try:
            if not pid:
                return False
            self._process = psutil.Process(pid)
            return self._process.status() not in (psutil.STATUS_ZOMBIE, psutil.STATUS_STOPPED)
        except psutil.NoSuchProcess:
            return False

    def _is_replaced(self) -> bool:
        return self._pids().get(self._fault.target) not in (None, self._process.pid)


class _Kill(_OnProcess):
    def begin(self) -> bool:
        if not self._find():
            return False
        self._process.kill()
        return True

    def has_fired(self) -> bool:
        return not _runs(self._process)

    def is_over(self, lasted_s: float) -> bool:
        return self._is_replaced()

    def end(self) -> None:
        pass


class _Pause(_OnProcess):
    def begin(self) -> bool:
        if not self._find():
            return False
        self._process.suspend()
        return True

    def has_fired(self) -> bool:
        return _status(self._process) == psutil.STATUS_STOPPED

    def is_over(self, lasted_s: float) -> bool:
        return lasted_s >= self._fault.duration_s

    def end(self) -> None:
        if _runs(self._process):
            self._process.resume()


class _Break:
    """A cut, delay or duplicate: the proxy before a server does it."""

    def __init__(self, proxies: Proxies, fault: Fault) -> None:
        self._proxies, self._fault = proxies, fault
        self._before = 0
        self._fired = False

    def begin(self) -> bool:
        self._before = self._proxies.struck(self._fault.kind, self._fault.target)
        self._proxies.begin(self._fault.kind, self._fault.target)
        return True

    def has_fired(self) -> bool:
        if self._fault.kind == schedule.CUT and not self._fired:
            self._proxies.begin(schedule.CUT, self._fault.target)
        self._fired = self._proxies.struck(self._fault.kind, self._fault.target) > self._before
        return self._fired

    def is_over(self, lasted_s: float) -> bool:
        return self._fired and lasted_s >= self._fault.duration_s

    def end(self) -> None:
        self._proxies.calm(self._fault.target)


class _Fill:
    """Leaves no space on the disk of a folder; what others free meanwhile is filled again."""

    def __init__(self, folder: Path, fault: Fault) -> None:
        self._ballast, self._fault = folder / _BALLAST, fault
        self._is_full = False

    def begin(self) -> bool:
        if shutil.disk_usage(self._ballast.parent).total > _MOST_BALLAST_BYTES:
            return False
        self._fill()
        return True

    def has_fired(self) -> bool:
        self._fill()
        return self._is_full

    def is_over(self, lasted_s: float) -> bool:
        return self._is_full and lasted_s >= self._fault.duration_s

    def end(self) -> None:
        self._ballast.unlink(missing_ok=True)

    def _fill(self) -> None:
        with self._ballast.open("ab", buffering=0) as file:
            try:
                while True:
                    file.write(bytes(1 << 20))
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise
                self._is_full = True


class _FillArenas(_Fill):
    """Fills the disk of the arenas and kills a shard, which has to come back on it."""

    def __init__(self, folder: Path, pids: Pids, fault: Fault) -> None:
        super().__init__(folder, fault)
        self._kill = _Kill(pids, fault)

    def begin(self) -> bool:
        if not super().begin():
            return False
        if not self._kill.begin():
            super().end()
            return False
        return True

    def has_fired(self) -> bool:
        return super().has_fired() and self._kill.has_fired()

    def is_over(self, lasted_s: float) -> bool:
        return super().is_over(lasted_s) and self._kill.is_over(lasted_s)


class _Shift:
    """Sets the wall clock of a process, which keeps it when it is started again meanwhile."""

    def __init__(self, clocks: Path, fault: Fault) -> None:
        self._fault = fault
        self._file = clocks / fault.target.replace("/", "-")
        self._seen = clocks / f"{self._file.name}.seen"
        self._ahead = f"{_SHIFTS_S[fault.variant % len(_SHIFTS_S)]}"
        self._fired = False

    def begin(self) -> bool:
        self._seen.unlink(missing_ok=True)
        self._set(self._ahead)
        return True

    def has_fired(self) -> bool:
        self._fired = self._fired or (self._seen.exists() and self._seen.read_text() == self._ahead)
        return self._fired

    def is_over(self, lasted_s: float) -> bool:
        return self._fired and lasted_s >= self._fault.duration_s

    def end(self) -> None:
        self._set("0")

    def _set(self, ahead: str) -> None:
        part = self._file.with_suffix(".part")
        part.write_text(ahead)
        part.replace(self._file)


class _DamageJournal(_Kill):
    """Stops the chief, damages its journal and kills it, so that the next chief finds the damage."""

    def __init__(self, journal: Path, pids: Pids, fault: Fault) -> None:
        super().__init__(pids, fault)
        self._journal = journal

    def begin(self) -> bool:
        if not self._journal.exists() or not self._find():
            return False
        self._process.suspend()
        content = self._journal.read_bytes()
        damaged = (content[: len(content) // 2], b"", b'{"job": [1, 2]}', _flipped(content, self._fault.variant), None)
        new = damaged[self._fault.variant % len(damaged)]
        if new is None:
            self._journal.unlink()
        else:
            self._journal.write_bytes(new)
        self._process.kill()
        return True


class _DamageCheckpoint:
    """Flips a bit of the newest complete checkpoint."""

    def __init__(self, checkpoints: Path, fault: Fault) -> None:
        self._checkpoints, self._fault = checkpoints, fault

    def begin(self) -> bool:
        manifests = sorted(self._checkpoints.glob("step-*/manifest.json"))
        try:
            file = random.Random(self._fault.variant).choice(sorted(manifests[-1].parent.glob("[!.]*")))
            content = bytearray(_flipped(file.read_bytes(), self._fault.variant))
            with file.open("r+b") as changed:
                changed.write(content)
        except (IndexError, OSError):  # there is none yet, or it has just been removed, or the disk is full
            return False
        return True

    def has_fired(self) -> bool:
        return True  # it is written

    def is_over(self, lasted_s: float) -> bool:
        return True

    def end(self) -> None:
        pass


class _Intruder:
    """Starts a process that must be refused, with exit code 2; what it disturbs shows in the count."""

    def __init__(self, command: list[str], log: Path) -> None:
        self._command, self._log = command, log
        self._process: subprocess.Popen[bytes] | None = None

    def begin(self) -> bool:
        with self._log.open("ab") as log:
            log.write(f"\n{' '.join(self._command)}\n".encode())
            log.flush()
            self._process = subprocess.Popen(
                self._command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        return True

    def has_fired(self) -> bool:
        assert self._process is not None
        return self._process.poll() == REFUSED

    def is_over(self, lasted_s: float) -> bool:
        assert self._process is not None
        return self._process.poll() is not None

    def end(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait()


def _flipped(content: bytes, variant: int) -> bytes:
    """The content with one bit changed."""
    changed = bytearray(content)
    if changed:
        changed[variant * 7919 % len(changed)] ^= 1 << variant % 8
    return bytes(changed)


def _runs(process: psutil.Process) -> bool:
    return _status(process) not in ("", psutil.STATUS_ZOMBIE)


def _status(process: psutil.Process) -> str:
    """As psutil names it; empty once the process is gone."""
    try:
        return str(process.status()) if process.is_running() else ""
    except psutil.NoSuchProcess:
        return ""


def may_fill_disks() -> bool:
    """Whether this process may mount the small disks that are filled."""
    return os.geteuid() == 0
