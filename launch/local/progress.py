"""Displays a running job: log lines by role, and one line of progress requested from the chief.

On a terminal the frame of `downpour top` stays at the bottom, in up to half of its lines, and log lines scroll above
it; elsewhere, and where TERM is dumb, the progress is a plain line about every ten seconds, or with
`--log_format=json` a JSON object. All of it goes to stderr; stdout is for results. Entered by one thread, the
supervisor's.
"""

from __future__ import annotations

import re
import sys
import time
from types import TracebackType
from typing import Protocol, Self, TextIO

import grpc
from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from downpour.launch.observe.status_text import duration as duration
from downpour.launch.observe.terminal import watching
from downpour.launch.observe.terminal.frame import frame
from downpour.launch.observe.terminal.trail import Trail
from downpour.launch.roles import log_lines
from downpour.proto import chief_pb2, chief_pb2_grpc
from downpour.proto.rpc.client import Channel
from downpour.worker.chief.progress import as_json

_PLAIN_EVERY_S = 10.0
_ASK_TIMEOUT_S = 0.5
_MOST_SCORES = 2  # in a line
_LEAST_LINES = 12  # of a frame
_NOISE = re.compile(
    r"WARNING: All log messages before absl|[IW]\d{4} \d\d:\d\d:|E\d{4} .*failed call to cuInit"
    r"|\[chief[^]]*\] (?:step \d+ of \d+, loss |page http)"  # shown as progress, and by the launcher
)
_COLORS = {"ps": "cyan", "worker": "green", "chief": "magenta", "evaluator": "yellow"}


class ChiefWatcher:
    """Requests a chief's progress, with a deadline short enough for a polling loop."""

    def __init__(self, address: str) -> None:
        self._channel = Channel(address, role="chief")
        self._stub = chief_pb2_grpc.ChiefStub(self._channel)  # type: ignore[no-untyped-call]

    def ask(self, timeout_s: float = _ASK_TIMEOUT_S, *, detailed: bool = False) -> chief_pb2.ProgressReply | None:
        """The chief's answer, with its details if asked for; None when it does not answer in time."""
        try:
            request = chief_pb2.ProgressRequest(detailed=detailed)
            reply: chief_pb2.ProgressReply = self._stub.Progress(request, timeout=timeout_s)
            return reply
        except grpc.RpcError:
            return None

    def close(self) -> None:
        """Closes the channel."""
        self._channel.close()


class Display(Protocol):
    """Shows lines and progress. A context manager.

    Attributes:
        detailed: Whether it shows the details of a reply.
    """

    detailed: bool

    def line(self, name: str, text: str) -> None:
        """Shows a line that the process `name` wrote."""
        ...

    def show(self, reply: chief_pb2.ProgressReply) -> None:
        """Shows the newest progress."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def display(stream: TextIO | None = None, log_format: str = "text") -> Display:
    """Returns the display for a stream, stderr by default, and a format of `--log_format`."""
    stream = stream or sys.stderr
    if log_format == "json":
        return JsonDisplay(stream)
    return LiveDisplay(stream) if watching.is_terminal(stream) else PlainDisplay(stream)


class PlainDisplay:
    """Prints lines as they arrive and the progress every ten seconds, and whenever the state changes."""

    detailed = False

    def __init__(self, stream: TextIO, every_s: float = _PLAIN_EVERY_S) -> None:
        self._stream, self._every_s = stream, every_s
        self._next_at, self._state = 0.0, ""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stream.flush()

    def line(self, name: str, text: str) -> None:
        """See `Display.line`."""
        if not is_noise(log_lines.as_text(text)):
            self._print(name, text)

    def show(self, reply: chief_pb2.ProgressReply) -> None:
        """See `Display.show`."""
        now, state = time.monotonic(), state_name(reply)
        if now >= self._next_at or state != self._state:
            self._next_at, self._state = now + self._every_s, state
            self._print("progress", summary(reply))

    def _print(self, name: str, text: str) -> None:
        print(prefixed(name, text), file=self._stream, flush=True)


class JsonDisplay(PlainDisplay):
    """As `PlainDisplay`, with a JSON object a line; lines of processes that are none are put into one."""

    def _print(self, name: str, text: str) -> None:
        print(log_lines.wrapped(name, text), file=self._stream, flush=True)


class LiveDisplay:
    """The newest frame at the bottom of a terminal, log lines scrolling above it."""

    detailed = True

    def __init__(self, stream: TextIO) -> None:
        self._console = Console(file=stream, highlight=False)
        self._glyphs, self._trail = watching.glyphs_of(stream), Trail()
        self._live = Live(Text("starting", style="bold"), console=self._console, transient=True, auto_refresh=False)

    def __enter__(self) -> Self:
        self._live.start(refresh=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()

    def line(self, name: str, text: str) -> None:
        """See `Display.line`."""
        if is_noise(text):
            return
        colored = Text(prefixed(name, text))
        colored.stylize(_COLORS.get(name.partition("/")[0], "blue"), 0, len(colored.plain.partition("]")[0]) + 1)
        self._console.print(colored, soft_wrap=True)

    def show(self, reply: chief_pb2.ProgressReply) -> None:
        """See `Display.show`."""
        status = as_json(reply)
        self._trail.add(status | {"run": status["recipe"] or "run"})
        size = self._console.size
        lines = frame(self._trail, size.width, max(size.height // 2, _LEAST_LINES), self._glyphs)
        self._live.update(Group(*lines), refresh=True)


def is_noise(text: str) -> bool:
    """Whether a line stays in the log file: logs of TensorFlow's C++ side, or progress, which is shown anyway."""
    return bool(_NOISE.match(text))


def prefixed(name: str, text: str) -> str:
    """The line with `[name]` before it, unless the process has written its own prefix."""
    return text if text.startswith((f"[{name}]", f"[{name} ")) else f"[{name}] {text}"


def state_name(reply: chief_pb2.ProgressReply) -> str:
    """The state as one word, `training`."""
    return chief_pb2.ProgressReply.State.Name(reply.state).removeprefix("STATE_").lower()


def summary(reply: chief_pb2.ProgressReply) -> str:
    """The progress as one line; what is not known yet is left out."""
    parts = [f"{state_name(reply)} {reply.step}/{reply.num_steps}"]
    if reply.step:
        parts += [
            f"loss {reply.loss:.4g}",
            f"{reply.examples_per_second:.1f} examples/s",
            f"{reply.pushes_per_second:.2f} pushes/s",
            f"staleness {reply.staleness_mean:.2f}",
        ]
    if "map_at_100" in reply.metrics:
        parts.append(f"mAP@100 {reply.metrics['map_at_100']:.3f}")
    else:
        parts += [f"held-out {name} {value:.4g}" for name, value in sorted(reply.metrics.items())[:_MOST_SCORES]]
    if reply.state == chief_pb2.ProgressReply.STATE_TRAINING and reply.step and reply.seconds_left >= 0:
        parts.append(f"{duration(reply.seconds_left)} left")
    return "  ".join(parts)
