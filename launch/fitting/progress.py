"""Progress of `fit` as Keras shows it: on a terminal and in a notebook a bar an epoch, elsewhere a line an epoch.

`Latest` keeps what the run's thread reports; `Bars` shows it, called by the thread that waits for the run.
"""

from __future__ import annotations

import re
import shutil
import sys
import threading
from collections import deque
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self, TextIO

from downpour.launch.fitting import words
from downpour.launch.fitting.history import values
from downpour.launch.local import progress
from downpour.model.data.epochs import Epochs
from downpour.proto.chief_pb2 import ProgressReply

_WIDTH = 20
_MOST_LINES = 100  # kept for a caller that does not wait
# Of what processes write: warnings, errors, crashes and restarts. All of it is in the folder `logs` of the run.
_WORTH_SHOWING = re.compile(r"\[[^]]*\] (warning|error|crashed|ended with|failed)")


class Latest:
    """The newest progress of a run, and lines that were not shown yet; a `Display`.

    Attributes:
        reply: The newest progress; None before the first.
    """

    detailed = False

    def __init__(self) -> None:
        self.reply: ProgressReply | None = None
        self._lines = deque[str](maxlen=_MOST_LINES)
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def line(self, name: str, text: str) -> None:
        """See `Display.line`."""
        text = progress.prefixed(name, text)
        if not progress.is_noise(text) and (name == "local" or _WORTH_SHOWING.match(text)):
            with self._lock:
                self._lines.append(words.of_fit(text))

    def show(self, reply: ProgressReply) -> None:
        """See `Display.show`."""
        self.reply = reply

    def lines(self) -> list[str]:
        """Returns the lines since the last call."""
        with self._lock:
            found = list(self._lines)
            self._lines.clear()
        return found


def verbosity(verbose: int | str, stream: TextIO | None = None) -> int:
    """Returns 0 for nothing, 1 for bars or 2 for lines; `auto` is bars on a terminal and in a notebook.

    Raises:
        ValueError: It is something else.
    """
    if verbose == "auto":
        shown = stream or sys.stdout
        return 1 if shown.isatty() or type(shown).__module__.startswith("ipykernel.") else 2
    if isinstance(verbose, bool) or verbose not in (0, 1, 2):
        raise ValueError(f"verbose is {verbose!r}; accepted are 'auto', 0 (nothing), 1 (bars) and 2 (a line an epoch)")
    return int(verbose)


def state_text(reply: ProgressReply | None, epochs: Epochs, num_steps: int) -> str:
    """The state of a run that goes on, `training, epoch 2 of 3, step 25 of 50`."""
    if reply is None or reply.state in (ProgressReply.STATE_UNSPECIFIED, ProgressReply.STATE_PREPARING):
        return "preparing"
    step, last = min(reply.step, num_steps), epochs.of(num_steps - 1)
    epoch = min(epochs.of(step), last)
    return f"{progress.state_name(reply)}, epoch {epoch + 1} of {last + 1}, step {step} of {num_steps}"


class Bars:
    """Shows the epochs of a run. A context manager, which removes an unfinished bar.

    Args:
        verbose: As returned by `verbosity`.
        epochs: Which steps make an epoch.
        num_steps: Steps of the job.
        examples_in_step: Examples that a step takes.
        stream: Where to; stdout by default.
    """

    def __init__(
        self, verbose: int, epochs: Epochs, num_steps: int, examples_in_step: int, stream: TextIO | None = None
    ) -> None:
        self._verbose, self._epochs, self._num_steps = verbose, epochs, num_steps
        self._examples_in_step = examples_in_step
        self._stream = stream or sys.stdout
        self._drawn = ""  # the unfinished bar
        self._before: tuple[int, float] | None = None  # the last epoch shown, and the seconds of training at its end

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._draw("")

    def line(self, text: str) -> None:
        """Shows a line above the bar."""
        if self._verbose:
            drawn = self._drawn
            self._draw("")
            print(text, file=self._stream, flush=True)
            self._draw(drawn)

    def preparing(self) -> None:
        """Shows that the run has not begun to train; where there are no bars, as a line."""
        if self._verbose == 1:
            self._draw("preparing ...")
        else:
            self.line("preparing ...")

    def epoch(self, row: Mapping[str, Any]) -> None:
        """Shows an epoch that is complete, a row of `EpochRows`."""
        epoch, end, seconds = row["epoch"], row["step"], row["seconds"]
        begin = self._epochs.end(epoch - 1) if epoch else 0
        since = (0.0 if not epoch else None) if self._before is None else self._before[1]
        taken = None if since is None else seconds - since
        parts = [] if taken is None else [f"{taken:.0f}s" if taken >= 10 else f"{taken:.1f}s"]
        if taken and taken >= 0.1:
            parts.append(f"{(end - begin) * self._examples_in_step / taken:,.0f} examples/s")
        self._before = epoch, seconds
        self._draw("")
        text = self._text(epoch, end - begin, end - begin, parts, values(row))
        self.line(text if self._verbose == 1 else text.replace("━" * _WIDTH + " ", ""))

    def progress(self, reply: ProgressReply) -> None:
        """Shows the epoch that goes on."""
        if self._verbose != 1:
            return
        state, step = progress.state_name(reply), min(reply.step, self._num_steps)
        if reply.state != ProgressReply.STATE_TRAINING or not reply.step or step >= self._num_steps:
            self._draw({"done": ""}.get(state, f"{state} ..."))
            return
        epoch = self._epochs.of(step)
        if self._before is not None and epoch <= self._before[0]:  # shown already, and this reply is older
            return
        begin = self._epochs.end(epoch - 1) if epoch else 0
        total = min(self._epochs.end(epoch), self._num_steps) - begin
        parts = [f"{reply.examples_per_second:,.0f} examples/s"] if reply.examples_per_second else []
        if reply.seconds_left >= 0:
            parts.append(f"{progress.duration(reply.seconds_left)} left")
        loss = {"loss": reply.epoch_loss or reply.loss}
        self._draw(self._text(epoch, step - begin, total, parts, loss | dict(sorted(reply.metrics.items()))))

    def _text(self, epoch: int, step: int, total: int, parts: list[str], shown: Mapping[str, float]) -> str:
        done = _WIDTH * step // max(total, 1)
        numbers = "".join(f" - {name}: {_number(value)}" for name, value in shown.items())
        head = f"Epoch {epoch + 1}/{self._epochs.of(self._num_steps - 1) + 1}  {step}/{total}"
        return f"{head} {'━' * done}{'─' * (_WIDTH - done)} {' '.join(parts)}{numbers}"

    def _draw(self, text: str) -> None:
        """Replaces the unfinished bar by another one; "" removes it. Blanks, since a notebook has no escape codes."""
        text = text[: shutil.get_terminal_size((120, 24)).columns - 1]
        if text == self._drawn:
            return
        blanks = " " * (len(self._drawn) - len(text))
        end = "" if text else "\r"
        self._stream.write(f"\r{text}{blanks}{end}")
        self._stream.flush()
        self._drawn = text


def _number(value: float) -> str:
    return f"{value:.4f}" if abs(value) > 1e-3 or not value else f"{value:.4e}"
