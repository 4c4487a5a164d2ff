"""Processes of a benchmark: start them, talk to them in lines, end every one of them whatever happens.

A child reads its settings from `--settings`, writes `ready`, reads the times of the measurement as one line of JSON,
and writes its result as one line of JSON (see `tests.benchmarks.measure`). Its stderr goes to a file. What the
environment says of OpenBLAS's kernels is kept from it: it takes those of the processor, so figures of several machines
compare. Everything here runs in the main thread.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import FrameType, TracebackType
from typing import IO, Any, Self

from tests.benchmarks.shape import ROOT

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_GRACE_S = 10.0
_NOT_INHERITED = ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE")


class Child:
    """One process, which is spoken to in lines."""

    def __init__(self, name: str, command: Sequence[str], log: Path, environment: Mapping[str, str]) -> None:
        self.name = name
        self._log = log
        inherited = {key: value for key, value in os.environ.items() if key not in _NOT_INHERITED}
        with log.open("wb") as stderr:
            self._process = subprocess.Popen(
                list(command),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
                cwd=ROOT,
                env=inherited | dict(environment),
                start_new_session=True,  # Ctrl-C reaches the parent alone, which ends its children
            )
        self.pid = self._process.pid

    @property
    def running(self) -> bool:
        """Whether it has not ended yet."""
        return self._process.poll() is None

    def write(self, line: str) -> None:
        """Sends a line."""
        with contextlib.suppress(BrokenPipeError):  # the next `read` says what happened
            print(line, file=_pipe(self._process.stdin), flush=True)

    def read(self, timeout_s: float) -> str:
        """Waits for a line.

        Raises:
            ValueError: The process ended, or wrote nothing for so long that it was killed.
        """
        timer = threading.Timer(timeout_s, self._process.kill)
        timer.start()
        line = str(_pipe(self._process.stdout).readline()).strip()
        timer.cancel()
        if not line:
            raise ValueError(f"{self.name} ended or was silent for {timeout_s:.0f} s; it wrote: {self.last_words()}")
        return line

    def last_words(self) -> str:
        """The end of what it wrote to stderr."""
        return " / ".join(self._log.read_text(errors="replace").strip().splitlines()[-5:]) or "nothing"

    def signal(self, number: int) -> None:
        """Sends a signal, unless it has ended."""
        if self.running:
            self._process.send_signal(number)

    def end(self, timeout_s: float) -> None:
        """Waits for its end; kills it when that takes too long."""
        try:
            self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            with contextlib.suppress(BrokenPipeError):
                _pipe(pipe).close()


class Processes:
    """A context manager that leaves no process behind, also on Ctrl-C and SIGTERM.

    Args:
        folder: For the files that take the processes' stderr.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._children: list[Child] = []
        self._handlers: dict[int, Any] = {}

    def __enter__(self) -> Self:
        for number in _SIGNALS:
            self._handlers[number] = signal.signal(number, _interrupt)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for ignored in _SIGNALS:
            signal.signal(ignored, signal.SIG_IGN)  # nothing may come between a child and its end
        for child in self._children:
            child.signal(signal.SIGTERM)
        deadline = time.monotonic() + _GRACE_S
        for child in self._children:
            child.end(max(0.0, deadline - time.monotonic()))
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def start(self, name: str, command: Sequence[str], environment: Mapping[str, str] | None = None) -> Child:
        """Starts a process; `command` should make it end with this one (`--die_with_parent`)."""
        child = Child(name, command, self._folder / f"{name.replace('/', '-')}.log", environment or {})
        self._children.append(child)
        return child


def wait_for_file(file: Path, child: Child, timeout_s: float = 120.0) -> str:
    """Waits for a child to write a file; its content.

    Raises:
        ValueError: The child ended, or wrote none in time.
    """
    wait_until(lambda: file.exists() or not child.running, timeout_s)
    if not file.exists():
        raise ValueError(f"{child.name} did not write {file.name}; it wrote: {child.last_words()}")
    return file.read_text()


def wait_until(condition: Callable[[], bool], timeout_s: float) -> bool:
    """Polls until a condition holds; False when it did not in time."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _pipe(pipe: IO[str] | None) -> IO[str]:
    assert pipe is not None
    return pipe
