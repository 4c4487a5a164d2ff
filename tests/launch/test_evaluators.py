"""Several evaluators of one job, all of them processes: each checkpoint is scored once, by one of them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from downpour.launch.observe import status_text
from downpour.launch.observe.status import history, of_folder
from tests.launch import jobs

pytestmark = pytest.mark.process

# While a file is there scoring takes as long: what a test does to an evaluator comes before its score.
SLOW = """
import sys
import time
from pathlib import Path


@dataclass(frozen=True)
class Slow(GeneratedImages):
    slow: Path = Path()

    def heldout(self, *, batch_size):
        while self.slow.exists() and "evaluator" in sys.argv[0]:  # and not in the preflight
            time.sleep(0.05)
        return super().heldout(batch_size=batch_size)


def job():
    data = Slow(image_size=8, num_labels=5, num_heldout=4, slow=Path(__file__).with_name("slow"))
    cluster = Cluster(num_ps=1, num_workers=1, threads_per_worker=1, num_evaluators=2, lease_s=4.0)
    return tiny(
        data=data,
        cluster=cluster,
        num_steps=120,
        steps_per_epoch=20,
        checkpoint_every_epoch=True,
        checkpoint_every_steps=120,
        keep_checkpoints=1,
        slicing=(),
    )
"""


def scored(job: jobs.LocalJob, index: int) -> list[int]:
    """Steps of the checkpoints that an evaluator has scored, in order."""
    log = job.run_dir / "logs" / f"evaluator-{index}.log"
    return [int(step) for step in re.findall(r"step (\d+): map_at_100", log.read_text())] if log.exists() else []


def given(job: jobs.LocalJob) -> dict[int, int]:
    """What the evaluators score at present: steps by index."""
    try:
        found = of_folder(job.run_dir).get("evaluators", ())
    except ValueError:
        return {}
    return {one["evaluator"]: one["step"] for one in found if one["state"] == "scoring"}


@pytest.mark.timeout(300)
def test_two_evaluators_score_every_checkpoint_once_though_one_is_killed(tmp_path: Path) -> None:
    slow = tmp_path / "slow"
    slow.touch()
    job = jobs.LocalJob(jobs.write_recipe(tmp_path, SLOW), tmp_path)
    try:
        job.wait(lambda: len(given(job)) == 2, "both evaluators to score")
        before = given(job)
        assert len(set(before.values())) == 2, "each has its own checkpoint"
        table = status_text.text(of_folder(job.run_dir))
        assert all(re.search(rf"\n  {i} +scoring step {step} for", table) for i, step in before.items()), table
        one = job.role("evaluator/1")
        one.suspend()  # it is silent, and is not started again
        slow.unlink()
        job.wait(lambda: before[1] in scored(job, 0), "the other to score its checkpoint")
        one.kill()
        assert job.end() == 0, job.stderr
    finally:
        job.kill()
    rows = history(job.run_dir)
    steps = [row["step"] for row in rows if row["kind"] == "score"]
    assert steps == sorted(set(steps)) and len(steps) >= 6, "each once, in their order"
    assert sorted([*scored(job, 0), *scored(job, 1)]) == steps and before[1] not in scored(job, 1)
    assert [row["epoch"] for row in rows if row["kind"] == "epoch"] == list(range(6))
