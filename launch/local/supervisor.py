"""Starts, monitors, restarts after crashes, and stops processes of one machine; independent of roles and recipes.

Policies:
1. Every process is the leader of its own session, so Ctrl-C in a terminal reaches only the supervisor, and ending a
   process ends what it started (its process group).
2. Signals and `interrupt` only set a flag, which `poll` turns into an exception; so no process is started without
   being recorded.
3. Exit code 2 means that the configuration is refused, 74 that the last checkpoint cannot be written: never restarted,
   the whole run ends with the process's last line.
   Exit code 0 is a normal end, unless the program is meant to run until it is stopped. Everything else is a crash:
   restarted after a growing pause, `max_restarts` times.
4. Output goes directly to a log file per process, which `poll` reads: no pipe can fill or break, and the logs are
   complete whatever happens to the supervisor.
5. The error line of a refused process is not passed to `on_line`: `ProcessFailed` or `reason` returns it, once.

All methods but `interrupt` are called by one thread, which must live as long as the processes: Linux ends children
"with their parent" when the thread that started them ends. `Supervisor` is a context manager; however its block ends,
no process is left.
"""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Self

from downpour.launch.local import signals
from downpour.launch.local.processes import Program, SupervisedProcess, describe_exit
from downpour.launch.roles.entry import INTERRUPTED, NOT_SAVED, REFUSED

__all__ = ["Interrupted", "ProcessFailed", "Program", "Stopped", "Supervisor"]

_TICK_S = 0.05
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.2, 5.0


class Stopped(Exception):
    """The supervisor was asked to end; `code` is the exit code to end with."""

    code = INTERRUPTED


class Interrupted(Stopped):
    """A signal asked the supervisor to end."""

    def __init__(self, number: int) -> None:
        self.code = 128 + number
        super().__init__(f"ended by {signal.Signals(number).name}")


class ProcessFailed(Exception):
    """A process ended the run; `code` is the exit code to end with."""

    def __init__(self, code: int, message: str) -> None:
        self.code = code
        super().__init__(message)


class Supervisor:
    """Runs programs until stopped; the module lists its policies.

    Args:
        log_dir: Folder for one `NAME.log` per program, `/` written as `-`.
        environment: Environment of every process.
        on_line: Called with name and text of every line that a process writes.
        grace_s: Seconds between SIGTERM and SIGKILL when stopping.
        handle_signals: Whether SIGINT, SIGTERM and SIGHUP interrupt it; then only the main thread may enter it.
    """

    def __init__(
        self,
        log_dir: Path,
        environment: Mapping[str, str],
        on_line: Callable[[str, str], None] = lambda name, line: None,
        grace_s: float = 10.0,
        handle_signals: bool = True,
    ) -> None:
        self._log_dir, self._environment, self._on_line, self._grace_s = log_dir, environment, on_line, grace_s
        self._handle_signals = handle_signals
        self._processes: dict[str, SupervisedProcess] = {}
        self._stopped: Stopped | None = None  # set by `interrupt`
        self._hurried = False
        self._closing = contextlib.ExitStack()

    def __enter__(self) -> Self:
        self._log_dir.mkdir(parents=True, exist_ok=True)
        if self._handle_signals:
            self._closing.enter_context(signals.handled(lambda number: self.interrupt(Interrupted(number))))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._closing:
            self.stop()

    def start(self, program: Program) -> None:
        """Starts a program and truncates its log."""
        assert program.name not in self._processes, program.name
        log = self._log_dir / f"{program.name.replace('/', '-')}.log"
        process = self._processes[program.name] = SupervisedProcess(program, log, self._on_line)
        self._closing.callback(process.close)
        process.launch(self._environment)

    def change_command(self, name: str, command: Sequence[str]) -> None:
        """Sets the command for restarts of a program, for example with the port that it has bound."""
        process = self._processes[name]
        process.program = replace(process.program, command=command)

    def pids(self) -> dict[str, int]:
        """Process id of everything that is running, by name."""
        return {name: process.pid for name, process in self._processes.items() if process.pid is not None}

    def interrupt(self, reason: Stopped, *, hurry: bool = False) -> None:
        """Has `poll` raise the reason; called by any thread or signal handler.

        Args:
            reason: The exception.
            hurry: Whether everything must end now, as after a second call.
        """
        self._hurried = hurry or self._stopped is not None
        self._stopped = reason

    @property
    def interrupted(self) -> bool:
        """Whether `interrupt` was called."""
        return self._stopped is not None

    @property
    def signalled(self) -> bool:
        """Whether a signal has interrupted it, so that a second one ends everything at once."""
        return isinstance(self._stopped, Interrupted)

    @property
    def hurried(self) -> bool:
        """Whether everything must end now: a second signal has arrived."""
        return self._hurried

    def ended(self, name: str) -> bool:
        """Whether a process has ended; neither restarts it nor raises for a signal."""
        return not self._reap([name])

    def exit_code(self, name: str) -> int | None:
        """Exit code of a program that ended for good; None while it runs or is about to be restarted."""
        return self._processes[name].exit_code

    def reason(self, name: str) -> str:
        """Message that a program ended with, for example `worker/1: no data`."""
        return self._processes[name].reason()

    def poll(self) -> None:
        """Reads new lines, detects processes that ended, restarts those that crashed.

        Raises:
            Stopped: `interrupt` was called, or a signal arrived.
            ProcessFailed: A process was refused, or crashed too often.
        """
        if self._stopped is not None:
            raise self._stopped
        for process in self._processes.values():
            if process.pid is not None:
                self._check(process)
            elif process.restart_at is not None and time.monotonic() >= process.restart_at:
                process.launch(self._environment)

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

    def drain(self, names: Iterable[str], timeout_s: float, *, terminate: bool = False) -> list[str]:
        """Waits for programs to end, restarting none; returns the names of those that run after `timeout_s`.

        Args:
            names: The programs.
            timeout_s: Seconds to wait.
            terminate: Whether their processes, not what these have started, get SIGTERM first.

        Raises:
            Stopped: `interrupt` was called, or a signal arrived.
        """
        names = list(names)
        for name in names:
            self._processes[name].program = replace(self._processes[name].program, max_restarts=0)
            if terminate:
                self._processes[name].terminate()
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline and self._stopped is None:
            if not self._reap(names):
                break
            time.sleep(_TICK_S)
        if self._stopped is not None:
            raise self._stopped
        return self._reap(names)

    def stop(self, names: Iterable[str] | None = None) -> None:
        """Ends programs, all by default: SIGTERM, `grace_s`, SIGKILL, each to the whole process group."""
        names = list(self._processes if names is None else names)
        for name in names:
            self._processes[name].restart_at = None
            self._processes[name].send(signal.SIGTERM)
        deadline = time.monotonic() + self._grace_s
        while self._reap(names) and time.monotonic() < deadline:
            time.sleep(_TICK_S)
        for name in names:
            self._processes[name].kill()

    def _reap(self, names: Iterable[str]) -> list[str]:
        """Reads lines; returns the names of what is still running."""
        for name in names:
            self._processes[name].poll()
        return [name for name in names if self._processes[name].pid is not None]

    def _check(self, process: SupervisedProcess) -> None:
        code = process.poll()
        if code is None or (code == 0 and not process.program.endless):
            return
        if code in (REFUSED, NOT_SAVED):
            raise ProcessFailed(code, process.reason())
        self._plan_restart(process, code)

    def _plan_restart(self, process: SupervisedProcess, code: int) -> None:
        name, most, restarts = process.program.name, process.program.max_restarts, process.restarts
        if restarts >= most:
            times = f"crashed {restarts + 1} times, lastly with" if restarts else "ended with"
            raise ProcessFailed(1, f"{name} {times} {describe_exit(code)}: {process.reason()} (see {process.log})")
        pause = min(_FIRST_PAUSE_S * 2**restarts, _LONGEST_PAUSE_S)
        process.restarts, process.restart_at = restarts + 1, time.monotonic() + pause
        what = f"ended with {describe_exit(code)}; restart {restarts + 1} of {most} in {pause:.1f} s"
        self._on_line(name, f"[{name}] {what}")
