"""A job whose source is slow, through the launcher; it has more workers than files."""

from __future__ import annotations

from pathlib import Path

import pytest

from downpour.launch import status
from downpour.launch.observe import status_text
from downpour.proto.security.config import PLAIN
from downpour.worker.input_share import LIMIT
from tests.launch.jobs import LocalJob, write_images, write_recipe

pytestmark = [pytest.mark.process, pytest.mark.slow, pytest.mark.timeout(900)]

SLOW = """
import time


@dataclass(frozen=True)
class Slow(ImageRecords):
    def training(self, *, batch_size, seed, leases):
        fast = super().training(batch_size=batch_size, seed=seed, leases=leases)

        def slowly():
            for batch in fast:
                time.sleep(0.4)  # longer than a step takes on a busy machine
                yield batch, fast.position

        return Batches(slowly(), fast.counts)


def job():
    data = Slow({folder!r}, 5, resize=12, crop=8, memory_bytes=0)
    cluster = Cluster(num_ps=2, num_workers=3, threads_per_worker=1)
    return tiny(data=data, num_steps=360, clip=CLIPPED, cluster=cluster)
"""


def test_workers_of_a_slow_source_say_so_and_summary_and_status_name_them(tmp_path: Path) -> None:
    folder = write_images(tmp_path / "data", num_train=200, num_heldout=4)
    recipe = write_recipe(tmp_path, SLOW.replace("{folder!r}", repr(str(folder))))
    local = LocalJob(recipe, tmp_path)
    assert local.end(800) == 0, local.stderr
    summary = local.result()
    assert set(summary["input_bound"]) == {"0", "1", "2"}
    assert all(share > LIMIT for share in summary["input_bound"].values())
    assert summary["epochs"] > 7 and summary["records_repeated"] == 0
    for worker in range(3):
        log = (local.run_dir / "logs" / f"worker-{worker}.log").read_text()
        assert log.count("this worker waits for its data for ") == 1
    text = status_text.text(status.look(str(local.run_dir), PLAIN))
    assert "  finding     workers " in text and " of a step; give the data more threads, or less to decode" in text
