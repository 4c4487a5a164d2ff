"""Starts, monitors, restarts after crashes, and stops processes of one machine; independent of roles and recipes.

Policies:
1. Every process is the leader of its own session, so Ctrl-C in a terminal reaches only the supervisor, and ending a
   process ends what it started (its process group).
2. Signals only set a flag, which `poll` turns into `Interrupted`; so no process is started without being recorded.
3. Exit code 2 means that the configuration is refused, 74 that the last checkpoint cannot be written: never restarted,
   the whole run ends with the process's last line.
   Exit code 0 is a normal end, unless the program is meant to run until it is stopped. Everything else is a crash:
   restarted after a growing pause, `max_restarts` times.
4. Output goes directly to a log file per process, which `poll` reads: no pipe can fill or break, and the logs are
   complete whatever happens to the supervisor.
5. The error line of a refused process is not passed to `on_line`: `ProcessFailed` or `reason` returns it, once.

Everything here runs in the main thread: Linux ends children "with their parent" when the thread that started them
ends. `Supervisor` is a context manager; however its block ends, no process is left.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import FrameType, TracebackType
from typing import IO, Any, Self

from downpour.launch.roles.entry import NOT_SAVED, REFUSED, TERMINATED

_TICK_S = 0.05
_REFUSAL = "] error: "  # as `entry.refuse` writes; errors that a process survives are warnings
_CRASH = "] crashed: "  # as `entry.run` writes after a traceback
_HOLD_S = 60.0  # from an error line to the end of its process, which on a busy machine unloads TensorFlow slowly
# As the last line of a traceback: `package.SomeError: message`.
_EXCEPTION = re.compile(r"[\w.]*(Error|Exception|Interrupt)\b")

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.2, 5.0
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupted(Exception):
    """A signal asked the supervisor to end; `code` is the matching exit code."""

    def __init__(self, number: int) -> None:
        self.code = 128 + number
        super().__init__(f"ended by {signal.Signals(number).name}")


class ProcessFailed(Exception):
    """A process ended the run; `code` is the exit code to end with."""

    def __init__(self, code: int, message: str) -> None:
        self.code = code
        super().__init__(message)


@dataclass(frozen=True)
class Program:
    """A program to run.

    Attributes:
        name: Unique, for example `ps/3`; names the log file, too.
        command: Its arguments.
        max_restarts: Crashes after which it is started again.
        endless: Whether it runs until stopped, so that exit code 0 is a crash as well.
    """

    name: str
    command: Sequence[str]
    max_restarts: int = 3
    endless: bool = False


@dataclass
class _Watched:
    """A program and its present process. `restart_at` is set between a crash and the next start."""

    program: Program
    log: Path
    process: subprocess.Popen[bytes] | None = None
    restarts: int = 0
    restart_at: float | None = None
    reader: IO[bytes] | None = None
    last_lines: list[str] = field(default_factory=list)  # of the present process, oldest first
    held: str = ""  # an error line, until it is known whether the process is refused with it
    held_at: float = 0.0

    @property
    def running(self) -> bool:
        return self.process is not None and self.process.returncode is None


class Supervisor:
    """Runs programs until stopped; the module lists its policies.

    Args:
        log_dir: Folder for one `NAME.log` per program, `/` written as `-`.
        environment: Environment of every process.
        on_line: Called with name and text of every line that a process writes.
        grace_s: Seconds between SIGTERM and SIGKILL when stopping.
    """

    def __init__(
        self,
        log_dir: Path,
        environment: Mapping[str, str],
        on_line: Callable[[str, str], None] = lambda name, line: None,
        grace_s: float = 10.0,
    ) -> None:
        self._log_dir, self._environment, self._on_line, self._grace_s = log_dir, environment, on_line, grace_s
        self._watched: dict[str, _Watched] = {}
        self._signal: int | None = None
        self._num_signals = 0
        self._handlers: dict[int, Any] = {}

    def __enter__(self) -> Self:
        assert threading.current_thread() is threading.main_thread(), "processes would die with this thread"
        self._log_dir.mkdir(parents=True, exist_ok=True)
        for number in _SIGNALS:
            self._handlers[number] = signal.signal(number, self._remember)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.stop()
        finally:
            for number, handler in self._handlers.items():
                signal.signal(number, handler)

    def start(self, program: Program) -> None:
        """Starts a program and truncates its log."""
        assert program.name not in self._watched, program.name
        log = self._log_dir / f"{program.name.replace('/', '-')}.log"
        log.write_bytes(b"")
        watched = self._watched[program.name] = _Watched(program, log, reader=log.open("rb"))
        self._launch(watched)

    def change_command(self, name: str, command: Sequence[str]) -> None:
        """Sets the command for restarts of a program, for example with the port that it has bound."""
        watched = self._watched[name]
        watched.program = replace(watched.program, command=command)

    def pids(self) -> dict[str, int]:
        """Process id of everything that is running, by name."""
        return {name: w.process.pid for name, w in self._watched.items() if w.process is not None and w.running}

    @property
    def hurried(self) -> bool:
        """Whether a second signal has arrived: everything must end now."""
        return self._num_signals > 1

    def ended(self, name: str) -> bool:
        """Whether a process has ended; neither restarts it nor raises for a signal."""
        return not self._reap([name])

    def exit_code(self, name: str) -> int | None:
        """Exit code of a program that ended for good; None while it runs or is about to be restarted."""
        watched = self._watched[name]
        return None if watched.process is None or watched.restart_at is not None else watched.process.returncode

    def reason(self, name: str) -> str:
        """Message that a program ended with, for example `worker/1: no data`."""
        return _reason(self._watched[name])

    def poll(self) -> None:
        """Reads new lines, detects processes that ended, restarts those that crashed.

        Raises:
            Interrupted: A signal arrived.
            ProcessFailed: A process was refused, or crashed too often.
        """
        if self._signal is not None:
            raise Interrupted(self._signal)
        for watched in self._watched.values():
            if watched.running:
                self._check(watched)
            elif watched.restart_at is not None and time.monotonic() >= watched.restart_at:
                self._launch(watched)

    def wait(self, until: Callable[[], bool], timeout_s: float | None = None) -> bool:
        """Polls until the predicate is true; returns False after `timeout_s`."""
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while not until():
            if deadline is not None and time.monotonic() > deadline:
                return False
            self.poll()
            time.sleep(_TICK_S)
        return True

    def run(self, program: Program) -> None:
        """Runs a program to its end."""
        self.start(program)
        self.wait(lambda: self.exit_code(program.name) is not None)

    def drain(self, names: Iterable[str], timeout_s: float) -> list[str]:
        """Waits for programs to end, restarting none; returns the names of those that run after `timeout_s`.

        Raises:
            Interrupted: A signal arrived.
        """
        names = list(names)
        for name in names:
            self._watched[name].program = replace(self._watched[name].program, max_restarts=0)
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline and self._signal is None:
            if not self._reap(names):
                break
            time.sleep(_TICK_S)
        if self._signal is not None:
            raise Interrupted(self._signal)
        return self._reap(names)

    def stop(self, names: Iterable[str] | None = None) -> None:
        """Ends programs, all by default: SIGTERM, `grace_s`, SIGKILL, each to the whole process group."""
        chosen = [self._watched[name] for name in (self._watched if names is None else names)]
        for watched in chosen:
            watched.restart_at = None
            _signal_group(watched, signal.SIGTERM)
        deadline = time.monotonic() + self._grace_s
        while self._reap([w.program.name for w in chosen]) and time.monotonic() < deadline:
            time.sleep(_TICK_S)
        for watched in chosen:
            _signal_group(watched, signal.SIGKILL)
            if watched.process is not None:
                watched.process.wait()
            self._read_lines(watched)

    def _remember(self, number: int, frame: FrameType | None) -> None:
        self._signal = number
        self._num_signals += 1

    def _launch(self, watched: _Watched) -> None:
        watched.restart_at, watched.last_lines = None, []
        with watched.log.open("ab") as log:
            watched.process = subprocess.Popen(
                list(watched.program.command),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=dict(self._environment),
                start_new_session=True,
            )

    def _reap(self, names: Iterable[str]) -> list[str]:
        """Reads lines; returns the names of what is still running."""
        running = []
        for name in names:
            watched = self._watched[name]
            if watched.process is not None and _poll(watched.process) is None:
                running.append(name)
            self._read_lines(watched)
        return running

    def _check(self, watched: _Watched) -> None:
        assert watched.process is not None
        code = _poll(watched.process)
        self._read_lines(watched)
        if code is None or (code == 0 and not watched.program.endless):
            return
        if code in (REFUSED, NOT_SAVED):
            raise ProcessFailed(code, _reason(watched))
        self._plan_restart(watched, code)

    def _plan_restart(self, watched: _Watched, code: int) -> None:
        name, restarts = watched.program.name, watched.restarts
        if restarts >= watched.program.max_restarts:
            times = f"crashed {restarts + 1} times, lastly with" if restarts else "ended with"
            raise ProcessFailed(1, f"{name} {times} {_describe(code)}: {_reason(watched)} (see {watched.log})")
        pause = min(_FIRST_PAUSE_S * 2**restarts, _LONGEST_PAUSE_S)
        watched.restarts, watched.restart_at = restarts + 1, time.monotonic() + pause
        most = watched.program.max_restarts
        self._on_line(name, f"[{name}] ended with {_describe(code)}; restart {restarts + 1} of {most} in {pause:.1f} s")

    def _read_lines(self, watched: _Watched) -> None:
        """Passes new complete lines of the log to `on_line`; of an ended process also the last, incomplete one."""
        assert watched.reader is not None
        while line := watched.reader.readline():
            if not line.endswith(b"\n") and watched.running:
                watched.reader.seek(-len(line), os.SEEK_CUR)
                return
            text = line.decode(errors="replace").rstrip()
            if text:
                self._release(watched)
                watched.last_lines = [*watched.last_lines[-19:], text]
                watched.held, watched.held_at = text, time.monotonic()
                if _REFUSAL not in text:
                    self._release(watched)
        code = watched.process.returncode if watched.process else None
        # A process that is stopped while it reports its refusal ends by SIGTERM.
        quiet = (None, REFUSED, NOT_SAVED, TERMINATED, -signal.SIGTERM)
        if code not in quiet or time.monotonic() > watched.held_at + _HOLD_S:
            self._release(watched)

    def _release(self, watched: _Watched) -> None:
        if watched.held:
            self._on_line(watched.program.name, watched.held)
            watched.held = ""


def _signal_group(watched: _Watched, number: int) -> None:
    """Signals a process and what it started, unless it has ended (its id may have been reused)."""
    if watched.process is not None and watched.running:
        _kill_group(watched.process.pid, number)


def _kill_group(pid: int, number: int) -> None:
    try:
        os.killpg(pid, number)
    except (ProcessLookupError, PermissionError):
        pass


def _poll(process: subprocess.Popen[bytes]) -> int | None:
    """Exit code, None while it runs. The rest of its process group is killed before its process id is free again."""
    if process.returncode is None and hasattr(os, "waitid"):
        if os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
            _kill_group(process.pid, signal.SIGKILL)
    return process.poll()


def _reason(watched: _Watched) -> str:
    """What a process ended with: its last line marked as an error, else its last exception, else its last line."""
    lines = watched.last_lines
    marked = [line.partition(mark)[2] for line in lines for mark in (_REFUSAL, _CRASH) if mark in line]
    raised = [line for line in lines if _EXCEPTION.match(line)]
    return f"{watched.program.name}: {(marked or raised or lines or ['it wrote nothing'])[-1]}"


def _describe(code: int) -> str:
    return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
