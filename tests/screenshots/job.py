"""A run whose pictures are worth looking at: four workers, of which one reads slowly, and five shards."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from tests.launch.fleet import first_of_free
from tests.launch.jobs import LocalJob, write_recipe

RECIPE = '''
import sys
import time


@dataclass(frozen=True)
class Uneven(GeneratedImages):
    """Worker 2 has the slow disk."""

    def training(self, *, batch_size, seed, leases):
        fast = super().training(batch_size=batch_size, seed=seed, leases=leases)

        def read():
            for images, labels in fast:
                time.sleep(0.4 if "--index=2" in sys.argv else 0.03)
                yield (images, labels), fast.position

        return Batches(read(), fast.counts)


def job():
    return replace(
        tiny(model=Small(16), data=Uneven(image_size=32, num_labels=20, num_heldout=64), batch_size=32),
        name="uneven",
        num_steps=4000,
        checkpoint_every_steps=100,
        clip=CLIPPED,
        cluster=Cluster(num_ps=5, num_workers=4, threads_per_worker=1),
    )
'''


@contextlib.contextmanager
def running(folder: Path) -> Iterator[LocalJob]:
    """The run, until the end of the block."""
    port = first_of_free(11)  # of chief, evaluator, shards and workers
    run = LocalJob(write_recipe(folder, RECIPE), folder, f"--metrics_port={port}")
    try:
        yield run
    finally:
        run.process.terminate()
        run.end()
