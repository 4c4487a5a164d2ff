"""Synchronous training by real worker processes equals one worker with the batches put together."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from downpour.ps.checkpoint import manifest as checkpoint
from tests.launch import jobs

pytestmark = [pytest.mark.process, pytest.mark.slow]

# Worker i of two computes the i-th half of what one worker alone computes at once, whatever its leases are. No batch
# norm, which sees batches.
HALVES = """
import keras
from absl import flags

from downpour.model.data.order import forever


@dataclass(frozen=True)
class Plain:
    def build(self, image_size, num_labels):
        return keras.Sequential(
            [
                keras.Input((image_size, image_size, 3)),
                keras.layers.Conv2D(4, 3, activation="relu", name="conv"),
                keras.layers.Flatten(name="flat"),
                keras.layers.Dense(num_labels, name="head"),
            ]
        )


@dataclass(frozen=True)
class Halves(GeneratedImages):
    def training(self, *, batch_size, seed, leases):
        whole = super().training(batch_size=8, seed=seed, leases=forever(self.num_records, 8))

        def parts():
            position = 0
            for lease, (images, labels) in zip(leases, whole):  # taken, but not followed
                position += lease.num_records
                start = getattr(flags.FLAGS, "index", 0) * batch_size  # no index: the preflight
                yield (images[start : start + batch_size], labels[start : start + batch_size]), position

        return Batches(parts(), whole.counts)


def job():
    return tiny(
        model=Plain(),
        data=Halves(image_size=8, num_labels=5, num_heldout=4),
        slicing=(Slicing("*head/*", num_slices=3),),
        num_steps=20,
        exchange=Exchange(codec="float32", overlap=False),
    )
"""


def parameters_after(folder: Path, *overrides: str) -> list[np.ndarray]:
    """Of a whole job with some overrides."""
    folder.mkdir()
    job = jobs.LocalJob(
        jobs.write_recipe(folder, HALVES), folder, "--noevaluator", *(f"--set={override}" for override in overrides)
    )
    try:
        assert job.end() == 0, job.stderr
    finally:
        job.kill()
    assert job.result()["pushes_dropped"] == 0
    saved = checkpoint.load(max((job.run_dir / "checkpoints").iterdir()))
    assert {shard.version for shard in saved.shards} == {20}
    return saved.layout.gather(saved.parameters())


def test_two_workers_in_step_equal_one_with_batches_twice_as_large(tmp_path: Path) -> None:
    together = parameters_after(tmp_path / "sync", "pace=Sync(num_gradients=2)")
    alone = parameters_after(tmp_path / "alone", "cluster.num_workers=1", "batch_size=8")
    for mine, theirs in zip(together, alone, strict=True):
        assert np.linalg.norm(mine - theirs) <= 1e-5 * np.linalg.norm(theirs)
