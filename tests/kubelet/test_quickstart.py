"""The quickstart as Kubernetes runs it: 5 shards and 3 workers, under faults and another number of workers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from downpour.model.vision.labels import LABELS_FILE
from tests.kubelet import manifests
from tests.kubelet.cluster import Cluster
from tests.launch.kubernetes.manifests import build

pytestmark = [pytest.mark.process, pytest.mark.slow, pytest.mark.timeout(3600), pytest.mark.xdist_group("hosts")]

DATA = Path("data/openmoji")  # `make quickstart` prepares it
FLAGS = ["--set=cluster.num_ps=5", "--set=cluster.num_workers=3", "--set=max_train_s=3000"]
DEADLINE_S = 900.0  # of anything, when other tests keep this machine busy
NUM_ENDED_WORKERS = 4  # one is deleted, three go when there shall be fewer
GOOD_MAP = 0.55  # what the recipe promises


@pytest.fixture
def quickstart(kubernetes: Cluster, tmp_path: Path) -> Path:
    """Applies it; the folder with the manifests."""
    if not (DATA / LABELS_FILE).exists():
        pytest.skip(f"no {DATA}; run: downpour prepare openmoji --out={DATA}")
    out = manifests.write(tmp_path / "deploy", "quickstart", "quickstart", *FLAGS)
    kubernetes.claims["quickstart-data"] = DATA.absolute()
    kubernetes.apply(build(out / "base"))
    return out


def test_quickstart_trains_through_faults_and_scaling(kubernetes: Cluster, quickstart: Path) -> None:
    pods, jobs = kubernetes.pods, kubernetes.jobs

    def wait(condition: Callable[[], object], what: str) -> None:
        kubernetes.wait(condition, what, DEADLINE_S)

    def ready(role: str, number: int) -> bool:
        return sum(pod.ready for pod in pods.values() if f"-{role}-" in pod.name) == number

    wait(lambda: ready("chief", 1) and ready("ps", 5), "shards that hold their parameters")
    chief = manifests.ask_chief(kubernetes, quickstart, "quickstart-chief-0")

    def wait_for_step(step: int) -> None:
        wait(lambda: chief.progress().step >= step, f"step {step}")

    wait_for_step(120)
    shard = pods["quickstart-ps-1"]
    shard.kill()  # its container: the arena is kept, and so is all that it holds
    wait(lambda: shard.restarts == 1 and shard.ready, "the shard's return")
    assert "continuing from the arena" in shard.log.read_text(), shard.log.read_text()
    assert pods["quickstart-ps-1"] is shard

    wait_for_step(200)
    worker = pods["quickstart-worker-0"]
    worker.delete()
    wait(lambda: pods.get("quickstart-worker-0") not in (None, worker), "a new worker")
    assert worker.exit_code == 143
    assert pods["quickstart-worker-0"].address != worker.address

    jobs["quickstart-worker"].scale(5)
    wait(lambda: ready("worker", 5), "five workers")

    wait_for_step(320)
    kubernetes.evict("quickstart-ps-3")
    evicted = pods["quickstart-ps-3"]
    wait(lambda: evicted.ended, "the shard's end")
    assert evicted.exit_code == 143
    assert "a checkpoint was written" in evicted.log.read_text(), evicted.log.read_text()
    wait(lambda: pods.get("quickstart-ps-3") not in (None, evicted) and ready("ps", 5), "a new shard")
    assert pods["quickstart-ps-3"].address != evicted.address

    jobs["quickstart-worker"].scale(2)
    wait(lambda: len([name for name in pods if "-worker-" in name]) == 2, "two workers")
    chief.close()

    wait(kubernetes.all_complete, "the end of all Jobs")
    assert not pods
    found = manifests.summary(kubernetes, "quickstart")
    print(found, kubernetes.describe(), kubernetes.memory, sep="\n")
    assert found["global_steps"] >= 700
    assert found["map_at_100"] >= GOOD_MAP
    # Only the evicted shard may have lost anything: what came between its checkpoint and its end, which it says. What
    # is counted and was not acknowledged is the last push of a worker that was ended, one each at most.
    assert set(found["updates_lost"]) <= {"3"}
    lost = sum(found["updates_lost"].values())
    assert found["pushes_applied_min"] + lost >= found["pushes_acknowledged"]
    assert found["pushes_applied_max"] - found["pushes_acknowledged"] <= NUM_ENDED_WORKERS
