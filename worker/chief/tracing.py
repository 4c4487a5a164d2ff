"""Collects the spans of the shards while steps are traced, and writes the trace when all are there, or the run ends.

Threads: one of its own, from `start` on; `finish` and `write` may be called by any.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime

from absl import logging

from downpour.worker.chief.run_folder import RunFolder
from downpour.worker.chief.settings import JobSettings
from downpour.worker.chief.shards import Shards
from downpour.worker.chief.trace_file import chrome_trace
from downpour.worker.chief.traces import Traces

_ASK_EVERY_S = 0.5
_FIRST_ROUNDS = 8  # one after another, to compare clocks
_MOST_ROUNDS = 100  # at a time, until no shard has more spans


class Tracing:
    """The trace of a run.

    Args:
        settings: The job's settings.
        folder: Folder of the run, which the trace is written to.
        clock: The chief's clock, in seconds.

    Attributes:
        traces: Takes the spans of workers.
    """

    def __init__(self, settings: JobSettings, folder: RunFolder, clock: Callable[[], float] = time.monotonic) -> None:
        self.traces = Traces(settings.trace_steps, settings.num_workers, clock)
        self._folder = folder
        self._about = {"recipe": settings.recipe, "steps_of_a_worker": settings.trace_steps}
        self._ending = threading.Event()
        self._thread: threading.Thread | None = None
        self._writing = threading.Lock()
        self._written = 0  # spans in the file; guarded by `_writing`

    def start(self, shards: Shards) -> None:
        """Begins to collect, if steps are to be traced."""
        if self.traces.num_steps and self._thread is None:
            self._thread = threading.Thread(target=self._run, args=(shards,), name="tracing", daemon=True)
            self._thread.start()

    def finish(self) -> None:
        """Collects once more and writes what there is; called when workers have ended and shards have not."""
        self._ending.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def write(self) -> None:
        """Writes the spans that are known, if there are more than in the file; logs what prevents it."""
        with self._writing:
            processes = self.traces.processes()
            count = sum(len(process.spans) for process in processes)
            if count <= self._written:
                return
            now = {"written": datetime.now(UTC).isoformat(timespec="microseconds"), "written_at_s": self.traces.clock()}
            trace = chrome_trace(processes, self._about | now)
            try:
                path = self._folder.write_trace(trace)
            except OSError as error:
                logging.warning("the trace cannot be written: %s; training goes on", error)
                return
            self._written = count
        logging.info("%d spans of traced steps are in %s; open it at https://ui.perfetto.dev", count, path)

    def _run(self, shards: Shards) -> None:
        for _ in range(_FIRST_ROUNDS):
            self._ask(shards)
        over = False
        while not over:
            over = self._ending.wait(_ASK_EVERY_S) or self.traces.complete  # the spans of shards are there before
            for _ in range(_MOST_ROUNDS):
                if not self._ask(shards):
                    break
        self.write()

    def _ask(self, shards: Shards) -> int:
        """Asks every shard for its spans once; returns how many came."""
        received = [self.traces.received("ps", shard) for shard in range(len(shards))]
        answers = shards.spans(received, self.traces.clock)
        for shard, spans in enumerate(answers):
            if spans is not None:
                self.traces.take("ps", shard, spans)
        return sum(len(spans.spans) for spans in answers if spans is not None)
