"""Sinks: what hears the history of a run while it is written, such as TensorBoard or a user's own tracker.

Threads: any may add an entry; one thread calls all sinks, one after another. Nothing waits for them: where they are
slower than the job, entries in between are left out, which is logged. A sink that raises is logged and called no more;
the job goes on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import logging

from downpour.worker.chief.deliveries import Deliveries, described

FINISH_WITHIN_S = 60.0


class Sink:
    """Base of sinks: override what is needed. Objects live on the chief, which holds no model.

    `downpour.fit` writes a sink into a recipe, so its class must be at the top level of a file, and be a dataclass if
    it has attributes; files and connections are opened in `on_begin`.
    """

    def check(self, run_dir: Path) -> None:
        """Called before the job begins, by the process that starts it and by the chief; writes nothing.

        Args:
            run_dir: The folder of the run, which may not exist yet.

        Raises:
            ValueError: Something must be mended first; the job is refused with this message.
        """

    def on_begin(self, job: dict[str, Any]) -> None:
        """A chief begins, or goes on with, a job.

        Args:
            job: `recipe`, `job_id`, `run_dir`, `step` that it goes on from, `num_steps`, `fields` (those of the job, as
                text by name), `layout` (a row each variable: `name`, `shape`, `kind`) and `num_shards`.
        """

    def on_entry(self, entry: dict[str, Any]) -> None:
        """A line was added to `history.jsonl`.

        Args:
            entry: `kind`, `step`, `seconds` of training, and what the kind has: see docs/runs.md.
        """

    def on_evaluation(self, evaluation: dict[str, Any]) -> None:
        """The evaluator has scored a checkpoint, and what it shows beside its scores is not empty.

        Nothing is collected for it where no sink of a job overrides this method.

        Args:
            evaluation: `step`; `seconds` of training; `pictures`, a PNG of held-out pictures with labels, b"" for none;
                `curves`, by the name of a class a dict of `positives` and `negatives`: how many examples are of the
                class, and are not, by bucket of their score. Of n buckets number i begins at i / (n - 1).
        """

    def on_end(self, summary: dict[str, Any]) -> None:
        """The job is over, failed or not; not called where the last checkpoint cannot be written, or the process dies.

        Args:
            summary: As in `summary.json`.
        """


class Sinks:
    """The sinks of one job.

    Args:
        sinks: They.
    """

    def __init__(self, sinks: Sequence[Sink]) -> None:
        self._sinks = list(sinks)
        self._deliveries = Deliveries[tuple[str, Mapping[str, Any]]]("sinks", self._deliver)

    def begin(self, job: Mapping[str, Any]) -> None:
        """Has all hear of the job; entries before are dropped."""
        if self._sinks:
            self._deliveries.start()
            self._deliveries.add(("on_begin", job))

    def entry(self, entry: Mapping[str, Any]) -> None:
        """Has all hear of an entry of the history."""
        self._deliveries.add(("on_entry", entry))

    def evaluation(self, evaluation: Mapping[str, Any]) -> None:
        """Has all hear of an evaluation."""
        self._deliveries.add(("on_evaluation", evaluation))

    def end(self, summary: Mapping[str, Any]) -> None:
        """Waits, up to `FINISH_WITHIN_S`, until all have heard of every entry and the end."""
        self._deliveries.finish(("on_end", summary), FINISH_WITHIN_S)

    def close(self) -> None:
        """Has the thread end once the call under way has returned."""
        self._deliveries.close()

    def _deliver(self, event: tuple[str, Mapping[str, Any]]) -> bool:
        method, given = event
        for sink in tuple(self._sinks):
            try:
                getattr(sink, method)(dict(given))
            except BaseException as error:  # of the user's code, `SystemExit` included: this thread must not vanish
                logging.debug("a sink failed", exc_info=True)
                logging.error("%s; it is called no more, and the job goes on", described(sink, method, error))
                self._sinks.remove(sink)
        return bool(self._sinks)


def take_evaluations(sinks: Sequence[Sink]) -> bool:
    """Whether any of them hears of evaluations."""
    return any(type(sink).on_evaluation is not Sink.on_evaluation for sink in sinks)


def check(sinks: Sequence[Any]) -> None:
    """Checks the sinks of a job.

    Raises:
        ValueError: One is not a sink.
    """
    for number, sink in enumerate(sinks):
        if not isinstance(sink, Sink):
            what = f"the class {sink.__name__}" if isinstance(sink, type) else repr(sink)
            raise ValueError(f"sinks.{number} is {what}; give objects of subclasses of downpour.Sink")
