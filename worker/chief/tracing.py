"""Collects the spans of the shards while steps are traced, and writes the trace when all are there, or the run ends.

Threads: one of its own, from `start` on; `finish` and `write` may be called by any.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

from absl import logging

from downpour.worker.chief.run_folder import RunFolder
from downpour.worker.chief.shards import Shards
from downpour.worker.chief.trace_file import chrome_trace
from downpour.worker.chief.traces import Traces

_ASK_EVERY_S = 0.5
_FIRST_ROUNDS = 8  # one after another, to compare clocks
_MOST_ROUNDS = 100  # at a time, until no shard has more spans


class Tracing:
    """The trace of a run.

    Args:
        traces: Collects the spans.
        folder: Folder of the run, which the trace is written to.
        about: What the trace's metadata say about the run.
    """

    def __init__(self, traces: Traces, folder: RunFolder, about: Callable[[], Mapping[str, Any]]) -> None:
        self._traces, self._folder, self._about = traces, folder, about
        self._ending = threading.Event()
        self._thread: threading.Thread | None = None
        self._writing = threading.Lock()
        self._written = 0  # spans in the file; guarded by `_writing`

    def start(self, shards: Shards) -> None:
        """Begins to collect, if steps are to be traced."""
        if self._traces.num_steps and self._thread is None:
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
            processes = self._traces.processes()
            count = sum(len(process.spans) for process in processes)
            if count <= self._written:
                return
            now = {"written": datetime.now(UTC).isoformat(timespec="seconds"), "written_at_s": self._traces.clock()}
            trace = chrome_trace(processes, {**self._about(), "steps_of_a_worker": self._traces.num_steps, **now})
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
            over = self._ending.wait(_ASK_EVERY_S) or self._traces.complete  # the spans of shards are there before
            for _ in range(_MOST_ROUNDS):
                if not self._ask(shards):
                    break
        self.write()

    def _ask(self, shards: Shards) -> int:
        """Asks every shard for its spans once; returns how many came."""
        received = [self._traces.received("ps", shard) for shard in range(len(shards))]
        answers = shards.spans(received, self._traces.clock)
        for shard, spans in enumerate(answers):
            if spans is not None:
                self._traces.take("ps", shard, spans)
        return sum(len(spans.spans) for spans in answers if spans is not None)
