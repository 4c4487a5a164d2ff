"""Does the tasks of a preparation: in processes of this machine, or as an Apache Beam pipeline.

Both call the same function for every task, so they write the same files. A Beam pipeline holds names of task files and
nothing else; its workers must see the folders of pictures and of output under the paths that this machine has.
"""

from __future__ import annotations

import importlib.util
import multiprocessing
import os
import signal
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import Protocol

from downpour import how_to_install
from downpour.model.data.reading import end_with_parent
from downpour.model.vision.preparing import shards

LOCAL = "local"
RUNNERS = (LOCAL, "DirectRunner", "FlinkRunner", "SparkRunner", "DataflowRunner")


class Runner(Protocol):
    """What does tasks."""

    def check(self) -> None:
        """Raises `ValueError` if a package is not installed."""
        ...

    def run(self, tasks: Sequence[str], say: Callable[[int], None]) -> None:
        """Does the tasks of these files (`shards.write`); calls `say` with the number done, at least at the end."""
        ...


@dataclass(frozen=True)
class Local:
    """Runs tasks in processes of this machine.

    Attributes:
        num_processes: Number of processes; 0 for one a core, 1 for none but this one.
    """

    num_processes: int = 0

    def check(self) -> None:
        """Nothing is needed."""

    def run(self, tasks: Sequence[str], say: Callable[[int], None]) -> None:
        """Does all tasks; calls `say` with the number of those that are done."""
        num_processes = min(self.num_processes or len(os.sched_getaffinity(0)), len(tasks))
        if num_processes < 2:
            for number, task in enumerate(tasks, start=1):
                shards.write(task)
                say(number)
            return
        context = multiprocessing.get_context("spawn")  # this process may have threads
        with ProcessPoolExecutor(num_processes, context, initializer=_begin) as pool:
            futures = [pool.submit(shards.write, task) for task in tasks]
            try:
                for number, future in enumerate(as_completed(futures), start=1):
                    future.result()
                    say(number)
            except BrokenProcessPool as error:
                raise ValueError(
                    "a process that prepares pictures was killed, perhaps for lack of memory; the same command "
                    "continues where this one ended, fewer --processes need less"
                ) from error
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise


@dataclass(frozen=True)
class Beam:
    """Runs tasks as an Apache Beam pipeline.

    Attributes:
        runner: `DirectRunner`, `FlinkRunner`, `SparkRunner` or `DataflowRunner`.
        arguments: Beam's own, as on its command line: `--direct_num_workers=2`.
    """

    runner: str
    arguments: tuple[str, ...] = ()

    def check(self) -> None:
        """Raises `ValueError` if Apache Beam is not installed."""
        if importlib.util.find_spec("apache_beam") is None:
            raise ValueError(f"--runner needs Apache Beam, which is not installed: {how_to_install('beam')}")

    def run(self, tasks: Sequence[str], say: Callable[[int], None]) -> None:
        """Does all tasks; calls `say` once."""
        import apache_beam as beam
        from apache_beam.options.pipeline_options import PipelineOptions

        options = PipelineOptions([f"--runner={self.runner}", *self.arguments])
        with beam.Pipeline(options=options) as pipeline:
            names = pipeline | "Tasks" >> beam.Create(list(tasks)) | "Spread" >> beam.Reshuffle()
            names | "Write" >> beam.Map(shards.write)
        say(len(tasks))


def _begin() -> None:
    """Of a worker process: it ends with its parent, which alone hears Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with_parent()
