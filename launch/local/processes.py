"""One program of a supervisor: its present process, its log, and what it ended with.

Entered by the thread of the supervisor only.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from downpour.launch.roles import log_lines
from downpour.launch.roles.entry import CRASH_LINE, NOT_SAVED, REFUSAL_LINE, REFUSED, TERMINATED

_HOLD_S = 60.0  # from an error line to the end of its process, which on a busy machine unloads TensorFlow slowly
_NUM_LINES = 20  # that are kept to tell the reason of an end
# As the last line of a traceback: `package.SomeError: message`.
_EXCEPTION = re.compile(r"[\w.]*(Error|Exception|Interrupt)\b")


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


class SupervisedProcess:
    """A program and its present process, whose output goes into a log that is read here.

    Args:
        program: The program.
        log: Its log file, which is truncated.
        on_line: Called with name and text of every line that the process writes, text or JSON, except the error line of
            a refusal.

    Attributes:
        program: What the next start runs.
        log: As given.
        restarts: How often the process was restarted.
        restart_at: Time of the next start (`time.monotonic`), between a crash and the restart; else None.
    """

    def __init__(self, program: Program, log: Path, on_line: Callable[[str, str], None]) -> None:
        log.write_bytes(b"")
        self.program, self.log = program, log
        self.restarts = 0
        self.restart_at: float | None = None
        self._on_line = on_line
        self._process: subprocess.Popen[bytes] | None = None
        self._reader = log.open("rb")
        self._last_lines: list[str] = []  # of the present process, oldest first
        self._held = ""  # an error line, until it is known whether the process is refused with it
        self._held_at = 0.0

    @property
    def pid(self) -> int | None:
        """Process id while it runs."""
        return self._process.pid if self._process is not None and self._process.returncode is None else None

    @property
    def returncode(self) -> int | None:
        """Exit code of the present process at the last `poll`; None while it runs."""
        return self._process.returncode if self._process is not None else None

    @property
    def exit_code(self) -> int | None:
        """Exit code of a program that ended for good; None while it runs or is about to be restarted."""
        return None if self.restart_at is not None else self.returncode

    def launch(self, environment: Mapping[str, str]) -> None:
        """Starts the program as the leader of a new session; its output is appended to the log."""
        self.restart_at, self._last_lines = None, []
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                list(self.program.command),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=dict(environment),
                start_new_session=True,
            )

    def poll(self) -> int | None:
        """Reads new lines; returns the exit code, None while the process runs.

        The rest of its process group is killed before its process id is free again.
        """
        process = self._process
        if process is not None:
            if process.returncode is None and hasattr(os, "waitid"):
                with contextlib.suppress(ChildProcessError):  # the program around this run reaps its children
                    if os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
                        _kill_group(process.pid, signal.SIGKILL)
            process.poll()
        self._read_lines()
        return self.returncode

    def send(self, number: int) -> None:
        """Signals the process and what it started, unless it has ended (its id may have been reused)."""
        if self.pid is not None:
            _kill_group(self.pid, number)

    def terminate(self) -> None:
        """Sends SIGTERM to the process alone, unless it has ended."""
        if self.pid is not None:
            os.kill(self.pid, signal.SIGTERM)

    def kill(self) -> None:
        """Ends the process and what it started at once."""
        self.send(signal.SIGKILL)
        if self._process is not None:
            self._process.wait()
        self._read_lines()

    def close(self) -> None:
        """Closes the log."""
        self._reader.close()

    def reason(self) -> str:
        """What the process ended with: its last line marked as an error, else its last exception, else its last line.

        For example `worker/1: no data`.
        """
        lines = self._last_lines
        marked = [found[1] for line in lines if (found := REFUSAL_LINE.search(line) or CRASH_LINE.search(line))]
        raised = [line for line in lines if _EXCEPTION.match(line)]
        return f"{self.program.name}: {(marked or raised or lines or ['it wrote nothing'])[-1]}"

    def _read_lines(self) -> None:
        """Passes new complete lines of the log to `on_line`; of an ended process also the last, incomplete one."""
        while line := self._reader.readline():
            if not line.endswith(b"\n") and self.pid is not None:
                self._reader.seek(-len(line), os.SEEK_CUR)
                return
            text = line.decode(errors="replace").rstrip()
            if text:
                self._release()
                plain = log_lines.as_text(text)
                self._last_lines = [*self._last_lines[1 - _NUM_LINES :], plain]
                self._held, self._held_at = text, time.monotonic()
                if not REFUSAL_LINE.search(plain):
                    self._release()
        # A process that is stopped while it reports its refusal ends by SIGTERM.
        quiet = (None, REFUSED, NOT_SAVED, TERMINATED, -signal.SIGTERM)
        if self.returncode not in quiet or time.monotonic() > self._held_at + _HOLD_S:
            self._release()

    def _release(self) -> None:
        if self._held:
            self._on_line(self.program.name, self._held)
            self._held = ""


def describe_exit(code: int) -> str:
    """An exit code as text: `exit code 5` or `signal SIGKILL`."""
    return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"


def _kill_group(pid: int, number: int) -> None:
    try:
        os.killpg(pid, number)
    except (ProcessLookupError, PermissionError):
        pass
