"""Follows a run until it ends: a frame on a terminal, lines elsewhere.

Threads: `Looks` has one that asks for the status, so that keys and the size of the terminal are noticed while a chief
does not answer; all else belongs to the caller. Times are those of `time.monotonic()`, so a clock that is set changes
nothing but the times that events are shown with.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TextIO

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from downpour.launch.observe import status_text
from downpour.launch.observe.terminal.frame import event_line, frame
from downpour.launch.observe.terminal.gauges import ASCII, BLOCKS, Glyphs
from downpour.launch.observe.terminal.trail import Trail
from downpour.proto.errors import DownpourError

_EVERY_S, _PLAIN_EVERY_S, _KEYS_EVERY_S = 1.0, 5.0, 0.2
_SILENT_S = 3.0  # from which a chief that does not answer is worth a word
_GONE_S = 60.0  # after which a chief that does not answer is not waited for
_ENDED_S = 5.0  # the same after the last step: it has ended
_LAST_LOOK_S = 1.0
_LOWEST = 10  # lines of a frame
_ONCE_LINES = 60  # of one that is written to a file
_FOOTER = "q ends this view; the run goes on"

Look = Callable[[], Mapping[str, Any]]


class Ending:
    """Decides whether a run has ended, for a view that has seen it go on. No I/O, no clock."""

    def __init__(self) -> None:
        self._step = self._num_steps = 0
        self._has_gone_on = False

    def answered(self, status: Mapping[str, Any]) -> str:
        """What an answer says: `ended`; `silent` while a chief that was there is not; "" while the run goes on."""
        state = status["state"]
        if state in ("done", "failed") or (state == "stopped" and not self._has_gone_on):
            return "ended"
        if state in ("stopped", "unknown") or (state == "starting" and self._has_gone_on):
            return "silent"
        self._has_gone_on = state != "starting"
        self._step, self._num_steps = int(status.get("step") or 0), int(status.get("num_steps") or 0)
        return ""

    def is_over(self, silent_s: float) -> bool:
        """Whether a chief that has been silent for so long is waited for no longer."""
        return silent_s > (_ENDED_S if self.is_trained else _GONE_S)

    @property
    def is_trained(self) -> bool:
        """Whether the last step was done when the chief was last heard."""
        return 0 < self._num_steps <= self._step


class Looks:
    """Asks for a run's status once a second, in a thread of its own. A context manager.

    Args:
        look: Asks; see `downpour.launch.status.look`.
    """

    def __init__(self, look: Look) -> None:
        self._look, self._over = look, threading.Event()
        self._newest: tuple[int, Mapping[str, Any] | None] = (0, None)  # replaced as a whole
        self._thread = threading.Thread(target=self._run, name="looks", daemon=True)

    def __enter__(self) -> Looks:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self._thread.join(_LAST_LOOK_S)  # an interpreter ends badly while another thread is in a call

    def newest(self) -> tuple[int, Mapping[str, Any] | None]:
        """Number of the last look, from 1 on, and what it found; None if nobody answered."""
        return self._newest

    def _run(self) -> None:
        number = 0
        while not self._over.is_set():
            try:
                found: Mapping[str, Any] | None = self._look()
            except (DownpourError, ValueError, OSError):  # its folder may be replaced, too
                found = None
            number += 1
            self._newest = number, found
            self._over.wait(_EVERY_S)


def follow(trail: Trail, look: Look, stream: TextIO | None = None) -> Mapping[str, Any] | None:
    """Shows a run until it ends or somebody ends the view.

    Args:
        trail: What is known of the run; its status is that of a first look.
        look: Asks for the status.
        stream: Where to; stdout by default.

    Returns:
        The last status; with `problem` if nobody has answered for `_GONE_S`; None if somebody has ended the view.
    """
    stream = stream or sys.stdout
    with contextlib.suppress(KeyboardInterrupt), Looks(look) as looks, _interrupt() as interrupted:
        screen = _Screen(trail, stream) if is_terminal(stream) else _Lines(trail, stream)
        with screen as show:
            return _follow(trail, looks, lambda events, silent_s: show(events, silent_s) and not interrupted())
    return None


def print_frame(trail: Trail, stream: TextIO) -> None:
    """Prints one frame, as large as the terminal."""
    console = Console(file=stream, highlight=False)
    height = max(console.size.height - 1, _LOWEST) if stream.isatty() else _ONCE_LINES
    for line in frame(trail, console.size.width, height, glyphs_of(stream)):
        console.print(line, no_wrap=True, crop=False)


def is_terminal(stream: TextIO) -> bool:
    """Whether frames can be drawn there."""
    return stream.isatty() and os.environ.get("TERM", "dumb") not in ("dumb", "unknown")


def glyphs_of(stream: TextIO) -> Glyphs:
    """The characters that a stream can show."""
    return BLOCKS if "utf" in (getattr(stream, "encoding", "") or "utf-8").lower() else ASCII


def _follow(trail: Trail, looks: Looks, show: Callable[..., bool]) -> Mapping[str, Any] | None:
    ending, shown = Ending(), 0
    said = ending.answered(trail.status)
    while True:
        number, found = looks.newest()
        events: list[Mapping[str, Any]] = []
        if number > shown:
            shown = number
            said = ending.answered(found) if found is not None else "silent"
            if found is not None and said != "silent":
                events = trail.add(found)
        if said == "ended":
            show(events, None)
            return trail.status
        silent_s = trail.missed(time.monotonic()) if said == "silent" else 0.0
        if ending.is_over(silent_s):
            return _last(trail, ending, found, silent_s)
        if not show(events, silent_s if silent_s > _SILENT_S else None):
            return None


def _last(trail: Trail, ending: Ending, found: Mapping[str, Any] | None, silent_s: float) -> Mapping[str, Any]:
    """The status of a run whose chief has gone."""
    if found is not None and found["state"] == "stopped":
        return found
    if ending.is_trained:
        return {**trail.status, "state": "done"}
    problem = f"the chief has not answered for {silent_s:.0f} s; this is what it said last"
    return {**trail.status, "state": "unknown", "problem": problem}


class _Screen:
    """Frames that fill a terminal; what it showed before comes back at the end."""

    def __init__(self, trail: Trail, stream: TextIO) -> None:
        self._trail, self._glyphs = trail, glyphs_of(stream)
        self._console = Console(file=stream, highlight=False)
        self._live = Live(console=self._console, screen=True, auto_refresh=False)
        self._closing = contextlib.ExitStack()
        self._drawn: tuple[object, ...] = ()

    def __enter__(self) -> Callable[..., bool]:
        self._pressed = self._closing.enter_context(_keys())
        self._closing.enter_context(self._live)
        return self._show

    def __exit__(self, *error: object) -> None:
        self._closing.close()

    def _show(self, events: list[Mapping[str, Any]], silent_s: float | None) -> bool:
        size = self._console.size
        now = (size, id(self._trail.status), None if silent_s is None else int(silent_s))
        if now != self._drawn:
            self._drawn = now
            lines = frame(self._trail, size.width, max(size.height - 1, _LOWEST), self._glyphs, silent_s)
            lines += [Text()] * (size.height - 1 - len(lines))
            self._live.update(Group(*lines, Text(_FOOTER, style="dim", no_wrap=True)), refresh=True)
        return self._pressed(_KEYS_EVERY_S) not in ("q", "Q")


class _Lines:
    """A line every few seconds, one each event, and one each new finding."""

    def __init__(self, trail: Trail, stream: TextIO) -> None:
        self._trail, self._stream = trail, stream
        self._next_s, self._said = 0.0, ("", False)
        self._found: set[tuple[str, str]] = set()

    def __enter__(self) -> Callable[..., bool]:
        return self._show

    def __exit__(self, *error: object) -> None: ...

    def _show(self, events: list[Mapping[str, Any]], silent_s: float | None) -> bool:
        now_s, status = time.monotonic(), self._trail.status
        for event in events:
            self._print(f"[event] {event_line(event).plain}")
        found = {(finding.kind, finding.subject): finding.text for finding in self._trail.findings}
        for text in (text for key, text in found.items() if key not in self._found):
            self._print(f"[finding] {text}")
        self._found = set(found)
        said = status["state"], silent_s is not None
        if now_s >= self._next_s or said != self._said:
            self._next_s, self._said = now_s + _PLAIN_EVERY_S, said
            silent = f"the chief has not answered for {silent_s:.0f} s; before: " if silent_s is not None else ""
            self._print(f"[run] {silent}{status_text.line(status)}")
        time.sleep(_KEYS_EVERY_S)
        return True

    def _print(self, text: str) -> None:
        print(text, file=self._stream, flush=True)


def _no_key(seconds: float) -> str:
    time.sleep(seconds)
    return ""


@contextlib.contextmanager
def _interrupt() -> Iterator[Callable[[], bool]]:
    """Gives whether Ctrl-C was pressed; an exception could be lost where it strikes. Pressed again, it is raised."""
    pressed = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield pressed.is_set
        return

    def note(*_: object) -> None:
        pressed.set()
        signal.signal(signal.SIGINT, signal.default_int_handler)

    before = signal.signal(signal.SIGINT, note)
    try:
        yield pressed.is_set
    finally:
        signal.signal(signal.SIGINT, before)


@contextlib.contextmanager
def _keys() -> Iterator[Callable[[float], str]]:
    """Gives a function that waits for a key, up to some seconds, and returns it; "" if none comes."""
    if not sys.stdin.isatty():
        yield _no_key
        return
    import termios
    import tty

    number = sys.stdin.fileno()
    before = termios.tcgetattr(number)

    def pressed(seconds: float) -> str:
        ready, _, _ = select.select([number], [], [], seconds)
        return os.read(number, 1).decode(errors="replace") if ready else ""

    try:
        tty.setcbreak(number)
        yield pressed
    finally:
        termios.tcsetattr(number, termios.TCSADRAIN, before)
