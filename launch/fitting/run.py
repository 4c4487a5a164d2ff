"""The run of a call of `fit`.

Threads: any may call; the run's own thread is that of `LocalRun`. Where there are Keras callbacks, another one calls
them, as epochs come in and whether or not a caller waits.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from downpour.launch.fitting import ending, words
from downpour.launch.fitting.callbacks import Callbacks, Calls
from downpour.launch.fitting.history import EpochRows, best_step, by_name, first_open, has_scores, lines, values
from downpour.launch.fitting.progress import Bars, Latest, state_text, verbosity
from downpour.launch.fitting.values import assign, assign_epoch
from downpour.launch.job.epochs import epochs_of
from downpour.launch.local import LocalRun, RunConfig, saving
from downpour.launch.local.supervisor import Stopped
from downpour.launch.observe import report
from downpour.proto.chief_pb2 import ProgressReply
from downpour.ps.checkpoint import manifest as checkpoint

if TYPE_CHECKING:
    import keras

_LOOK_EVERY_S = 0.1
_BEFORE_TRAINING = (ProgressReply.STATE_UNSPECIFIED, ProgressReply.STATE_PREPARING)


class FitRun(LocalRun):
    """A run of `fit`; see `LocalRun`.

    Args:
        config: What to run and where.
        model: The model that was given.
        callbacks: The callbacks that were given.
        verbose: What `wait` shows, unless it is told otherwise; see `progress.verbosity`.
        copy: Makes a model like it, for callbacks.

    Attributes:
        recipe: Path of its recipe.
    """

    def __init__(
        self,
        config: RunConfig,
        model: keras.Model,
        callbacks: Callbacks,
        verbose: int | str,
        copy: Callable[[], keras.Model],
    ) -> None:
        self._latest = Latest()
        super().__init__(config, self._latest)
        self.recipe = Path(config.recipe)
        self._trained, self._copy, self._callbacks, self._verbose = model, copy, callbacks, verbose
        self._epochs, self._num_steps = epochs_of(config.job), config.job.num_steps
        num_epochs = self._epochs.of(self._num_steps - 1) + 1
        params = {"epochs": num_epochs, "steps": self._epochs.end(0), "verbose": 0}
        self._calls = Calls(callbacks.here, params)
        self._called = threading.Event()  # the callbacks' last event
        self._mistake: BaseException | None = None  # raised by a callback
        self._first = self._shown = 0  # the first epoch of this run, and the first that no caller was shown
        self._before: frozenset[bytes] = frozenset()  # lines of the history before this run
        self._told: set[str] = set()  # what a caller is told once

    @words.spoken()
    def start(self) -> Self:
        """See `LocalRun.start`; the events `on_train_begin` are called first."""
        job, newest = self.config.job, saving.newest(self.config)
        if newest and self.config.checkpoints.resume != "no":
            self._before = lines(self._history_file)
            self._first = first_open(self._history_file, int(newest.removeprefix("step-")))
        own = self._copy() if self._calls.need_model else None
        super().start()
        if not self._callbacks.here:
            self._called.set()
            return self
        try:
            self._calls.begin(self._trained, own, self._first)
        except BaseException:
            self.stop(save=False)
            raise
        threading.Thread(target=self._call, args=(own,), name=f"callbacks of {job.name}", daemon=True).start()
        return self

    @words.spoken()
    def wait(self, timeout_s: float | None = None, verbose: int | str | None = None) -> dict[str, Any]:
        """Waits for the end of the run and shows its progress; returns its summary. See `LocalRun.wait`.

        `KeyboardInterrupt` stops the run, as `stop` does; a second one ends every process at once.

        Args:
            timeout_s: Seconds to wait; None for any time.
            verbose: 0 for nothing, 1 for a bar an epoch, 2 for a line an epoch, `auto` for bars on a terminal and in a
                notebook; None for what was given to `fit`.
        """
        level = verbosity(self._verbose if verbose is None else verbose)
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        rows = EpochRows(self._history_file, self._shown, self._before)
        job = self.config.job
        with Bars(level, self._epochs, job.num_steps, job.batch_size) as bars:
            if self.running and not self._has_begun() and self._is_untold("preparing"):
                bars.preparing()
            try:
                while not self._ended.wait(_LOOK_EVERY_S):
                    self._show(bars, rows)
                    if deadline is not None and time.monotonic() > deadline:
                        raise self._too_late(timeout_s)
            except KeyboardInterrupt:
                bars.line("interrupted: the run stops with a checkpoint; a second interrupt ends it at once")
                self.stop()
                raise
            self._show(bars, rows)
            ended = ending.line_of(self._summary_of_stop() or self._summary, job)
            if ended and self._mistake is None and self._is_untold("ended"):
                bars.line(ended)
        self._called.wait()
        if self._mistake is not None:
            raise self._mistake
        return self._summary_of_stop() or super().wait()

    @property
    def summary(self) -> dict[str, Any]:
        """The summary of the run, as in `summary.json`; empty until it has ended.

        After `stop` it has `ended_by`, which is "stop", `ended_because` and `global_steps`, those of the checkpoint.
        """
        if self.running:
            return {}
        path = self.config.folder / report.SUMMARY_FILE
        return self._summary_of_stop() or (dict(json.loads(path.read_text())) if path.exists() else {})

    def _summary_of_stop(self) -> dict[str, Any]:
        return ending.summary_of_stop(self._error, self._calls.stopped_by, self.config)

    def __repr__(self) -> str:
        if self._lock is None:
            state = "not started"
        elif self.running:
            state = state_text(self._latest.reply, self._epochs, self._num_steps)
        else:
            state = ending.state_text(self._summary_of_stop() or self._summary, self._error, self._num_steps)
        return f"<run of {self.config.job.name} in {self.config.folder}: {state}>"

    @property
    def history(self) -> dict[str, list[float]]:
        """Loss and scores by name, one value an epoch, as `History.history` of Keras; so far.

        An epoch is complete, and has a value, once its checkpoint is scored. After `stop`, scores that did not come in
        time are NaN; a run that resumes it has them. A resumed run has all epochs, from the first.
        """
        return by_name(EpochRows(self._history_file).new())

    @property
    def epoch(self) -> list[int]:
        """Numbers of the epochs in `history`, as `History.epoch` of Keras: from 0, without a gap."""
        return [row["epoch"] for row in EpochRows(self._history_file).new()]

    @property
    def model(self) -> keras.Model:
        """The model with the values of the newest checkpoint, which are assigned to the one that was given.

        With `EarlyStopping(restore_best_weights=True)`, those of the checkpoint with the best score.

        Raises:
            ValueError: There is no checkpoint.
        """
        from downpour.launch.roles import initial

        best, folder = self._callbacks.best, self.config.folder
        step = None if best is None else best_step(self._history_file, best.monitor)
        if step is None:
            saved = initial.load_checkpoint(str(folder))
        else:
            saved = checkpoint.load(f"{self.config.checkpoints.of(folder)}/step-{step:010d}")
        assign(self._trained, saved, self.config)
        return self._trained

    @property
    def _is_scored(self) -> bool:
        """Whether each epoch has a checkpoint that is scored."""
        return self.config.evaluator and self.config.job.checkpoint_every_epoch

    def _is_untold(self, what: str) -> bool:
        is_new = what not in self._told
        self._told.add(what)
        return is_new

    @property
    def _history_file(self) -> Path:
        return self.config.folder / report.HISTORY_FILE

    def _has_begun(self) -> bool:
        """Whether the history is of this run: its chief has begun, and removed what an earlier run had left."""
        reply = self._latest.reply
        return bool(self._summary) or (reply is not None and reply.state not in _BEFORE_TRAINING)

    def _show(self, bars: Bars, rows: EpochRows) -> None:
        for line in self._latest.lines():
            bars.line(line)
        for row in rows.new() if self._has_begun() else []:
            bars.epoch(row)
            self._shown = row["epoch"] + 1
        if self._latest.reply is not None and not self._ended.is_set():
            bars.progress(self._latest.reply)

    def _call(self, own: keras.Model | None) -> None:
        """Calls the callbacks until the run has ended."""
        rows = EpochRows(self._history_file, known=self._before)
        last = self._epochs.of(self._num_steps - 1)
        try:
            ended = False
            while not ended:
                ended = self._ended.wait(_LOOK_EVERY_S)
                for row in rows.new() if self._has_begun() else []:
                    if self._supervisor.interrupted and not has_scores(row) and self._is_scored:
                        continue  # a resumed run has its scores
                    if own is not None:
                        assign_epoch(own, row, self.config)
                    self._calls.epoch(row["epoch"], values(row), row["epoch"] == last)
                if self._calls.stopped_by and not ended:
                    self.stop()
            if self._error is None or isinstance(self._error, Stopped):
                self._calls.end()
        except BaseException as error:  # `wait` raises it in the caller's thread
            self._mistake = error
            self.stop()
        finally:
            self._called.set()
