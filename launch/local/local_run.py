"""A run on this machine as an object: started, waited for and stopped from Python, from any thread.

    from downpour.launch.local import RunConfig, start

    with start(RunConfig("quickstart", overrides=("num_steps=100",))) as run:
        summary = run.wait()

Threads: each run has a thread of its own, which starts and supervises the processes and lives until the last of them
has ended, since Linux ends children when the thread that started them ends. The thread is a daemon, so that it does not
keep the interpreter from ending; at the interpreter's exit a run that is still going is stopped. Signal handlers are
left alone: a caller that wants a signal to end a run passes it on, `signals.handled(run.interrupt)`.

Does not import TensorFlow.
"""

from __future__ import annotations

import atexit
import os
import threading
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from downpour.launch.local import progress, signals, training
from downpour.launch.local.config import RunConfig, check
from downpour.launch.local.progress import Display
from downpour.launch.local.supervisor import Interrupted, Stopped, Supervisor
from downpour.worker.chief import owner

_ENVIRONMENT = {"PYTHONUNBUFFERED": "1"}


def start(config: RunConfig, display: Display | None = None) -> LocalRun:
    """Checks a configuration and starts the run; see `LocalRun`. Relative paths are resolved now."""
    recipe = Path(config.recipe)
    absolute = replace(
        config,
        recipe=recipe.absolute() if recipe.suffix == ".py" else config.recipe,
        run_dir=config.folder.absolute(),
        arena_parent=config.arena_parent and config.arena_parent.absolute(),
    )
    return LocalRun(absolute, display).start()


class LocalRun:
    """A job with all its processes on this machine. A context manager; however its block ends, no process is left.

    Args:
        config: What to run and where.
        display: Shows log lines and progress, called by the run's thread; on stderr by default.

    Attributes:
        config: As given.

    Raises:
        ValueError: The recipe, an override or another setting is refused; nothing was written.
    """

    def __init__(self, config: RunConfig, display: Display | None = None) -> None:
        self.config = config
        self._display = display or progress.display(log_format=config.log_format)
        logs, environment = config.folder / "logs", os.environ | _ENVIRONMENT
        environment.pop("TF_CONFIG", None)
        self._supervisor = Supervisor(logs, environment, self._display.line, handle_signals=False)
        self._thread = threading.Thread(target=self._run, name=f"run of {config.job.name}", daemon=True)
        self._ended = threading.Event()  # `Thread.join` takes a thread for ended when a signal interrupts it
        self._lock: owner.Lock | None = None
        self._process = 0  # process id; a child that is forked has no such thread
        self._summary: dict[str, Any] = {}
        self._error: BaseException | None = None

    def start(self) -> Self:
        """Starts the run, once; returns it.

        Raises:
            ValueError: The configuration is refused, or the folder of the run holds another run or is in use.
        """
        if self._lock is not None:
            raise ValueError(f"the run in {self.config.folder} was started before; make a new one")
        check(self.config)
        self._lock = owner.Lock(self.config.folder / owner.LAUNCHER_LOCK, "launcher")
        owner.write_failure(self.config.folder, "")
        self._process = os.getpid()
        atexit.register(self.stop)
        self._thread.start()
        return self

    @property
    def running(self) -> bool:
        """Whether the run has started and not ended."""
        return self._process == os.getpid() and not self._ended.is_set()

    def wait(self, timeout_s: float | None = None) -> dict[str, Any]:
        """Waits for the end of a run that was started; returns its summary, as in `summary.json`.

        Args:
            timeout_s: Seconds to wait; None for any time.

        Raises:
            TimeoutError: The run has not ended; it goes on.
            Stopped: The run was stopped, or a signal was passed on to it.
            ProcessFailed: A process failed; the message has name and reason. Notes of the last two say how to continue.
        """
        if not signals.wait(self._ended, timeout_s):
            raise self._too_late(timeout_s)
        if self._error is not None:
            raise self._error
        return self._summary

    def stop(self, *, save: bool = True) -> None:
        """Ends every process and waits for that; does nothing once the run has ended.

        A second stop, or an exception in the waiting caller such as `KeyboardInterrupt`, ends them at once. A display,
        which the run's thread calls, may stop the run, too; then this returns at once.

        Args:
            save: Whether the chief first writes a checkpoint, which takes up to 30 s.
        """
        is_own = threading.current_thread() is self._thread
        if not self.running or (is_own and self._supervisor.interrupted):
            return
        self._supervisor.interrupt(Stopped("stopped by the caller"), hurry=not save)
        if is_own:
            return
        try:
            signals.wait(self._ended)
        except BaseException:
            self._supervisor.interrupt(Stopped("stopped by the caller"), hurry=True)
            raise

    def interrupt(self, number: int) -> None:
        """Has a signal end the run, as `stop`, without waiting; a second one ends every process at once.

        May be called by a signal handler.
        """
        self._supervisor.interrupt(Interrupted(number))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._supervisor.interrupted:
            self.stop()
        elif self.running:  # a signal was passed on to it
            signals.wait(self._ended)

    def _too_late(self, timeout_s: float | None) -> TimeoutError:
        return TimeoutError(f"the run in {self.config.folder} has not ended within {timeout_s:g} s")

    def _run(self) -> None:
        try:
            self._summary = training.train(self.config, self._supervisor, self._display)
        except BaseException as error:  # `wait` raises it in the caller's thread
            self._error = error
        finally:
            atexit.unregister(self.stop)
            if self._lock is not None:
                self._lock.close()
            self._ended.set()
