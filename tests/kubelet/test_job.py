"""A small job, from `downpour kubernetes` to its end, with everything that its manifests say."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path

import pytest

from tests.kubelet import manifests
from tests.kubelet.cluster import Cluster
from tests.kubelet.fields import Document
from tests.kubelet.observing import Scrapes, report_to, target_labels
from tests.launch.jobs import write_recipe
from tests.launch.kubernetes.manifests import build, find
from tests.launch.trainer import Trainer

pytestmark = [pytest.mark.process, pytest.mark.timeout(600), pytest.mark.xdist_group("hosts")]

SERVES = {  # what each role says of itself
    "chief": r"^downpour_job_steps 40",
    "evaluator": r"^downpour_evaluator_",
    "ps": r"^downpour_shard_version",
    "worker": r"^downpour_worker_",
}
ENDS = {  # why its container has ended, as `kubectl describe pod` shows it
    "chief": r"\[chief] done: \d+ steps, .*, ended by steps",
    "evaluator": r"\[evaluator] the job is over; checkpoints scored here: [1-9]",
    "ps": r"\[ps/0] stopped",
    "worker": r"\[worker/\d[^]]*] trained",
}
END_S = 300.0  # when other tests keep this machine busy; alone it takes a tenth of that


def write(tmp_path: Path) -> Path:
    recipe = write_recipe(tmp_path)
    more = ("--set=exchange.give_up_after_s=300", "--log_format=json")
    return manifests.write(tmp_path / "deploy", str(recipe), "tiny", *more)


def monitor_of(out: Path) -> Document:
    """The PodMonitor of the job."""
    return find(build(out / "monitoring"), "PodMonitor", "tiny")


def run(kubernetes: Cluster, documents: list[Document], monitor: Document) -> None:
    """Applies documents and waits until everything has ended; every push must have been counted once.

    Meanwhile every pod's metrics are scraped where its annotations say.
    """
    scrapes, labels = Scrapes(kubernetes), dict[str, dict[str, str]]()

    def over() -> bool:
        scrapes.look()
        labels.update({pod.name: target_labels(monitor, pod) for pod in kubernetes.pods.values()})
        return kubernetes.all_complete()

    kubernetes.apply(documents)
    kubernetes.wait(over, "the end of everything", END_S)
    found = manifests.summary(kubernetes, "tiny")
    assert found["global_steps"] >= 40
    assert found["pushes_acknowledged"] == found["pushes_applied_min"] == found["pushes_applied_max"]
    assert found["map_at_100"] > 0, found
    of_roles = Counter(one["role"] for one in labels.values())
    assert of_roles == {"ps": 2, "worker": 2, "chief": 1, "evaluator": 1}
    for name, one in labels.items():
        assert one["run"] == "tiny" and f"-{one['role']}-" in name and name.endswith(f"-{one['index']}"), (name, one)
        assert re.search(SERVES[one["role"]], scrapes.texts[name], re.MULTILINE), (name, scrapes.texts[name])


def check_ends(kubernetes: Cluster, name: str) -> None:
    """Checks the last message of each role's pods, whose names are `name` with role and index in its braces."""
    for role, said in ENDS.items():
        ends = [messages(kubernetes, name.format(role, index))[-1] for index in range(2 if role == "worker" else 1)]
        assert any(re.fullmatch(f"0: {said}", end) for end in ends), ends  # the first worker that ends ends the other


def messages(kubernetes: Cluster, pod: str) -> list[str]:
    """Code and message of every end of a pod's container."""
    start = f"{pod}: container ended with "
    return [text.removeprefix(start) for _, text in kubernetes.events if text.startswith(start)]


def test_a_job_runs_from_its_manifests_to_its_end(kubernetes: Cluster, tmp_path: Path) -> None:
    out = write(tmp_path)
    run(kubernetes, build(out / "base"), monitor_of(out))
    assert not kubernetes.pods
    assert not any(job.failures for job in kubernetes.jobs.values()), kubernetes.describe()
    check_ends(kubernetes, "tiny-{}-{}")
    for index, log in enumerate(log for log in kubernetes.logs("tiny-ps").values() if log):
        first = json.loads(log.splitlines()[0])
        assert (first["role"], first["severity"]) == ("ps", "INFO"), index
        assert first["message"].startswith("listens on ")
        assert all(json.loads(line)["time"] for line in log.splitlines())


@pytest.mark.slow
@pytest.mark.parametrize("form", ["jobset", "tfjob"])
def test_a_job_runs_as_one_object(form: str, kubernetes: Cluster, tmp_path: Path) -> None:
    out = write(tmp_path)
    with Trainer(tmp_path / "trainer", kubernetes.address) as trainer:
        run(kubernetes, report_to(trainer, build(out / form)), monitor_of(out))
    assert all(pod.exit_code == 0 for pod in kubernetes.pods.values()), kubernetes.describe()
    check_ends(kubernetes, "tiny-{}-{}" if form == "tfjob" else "tiny-{}-0-{}")
    assert not trainer.refused
    first, last = trainer.accepted[0], trainer.accepted[-1]
    assert first["progressPercentage"] == 0
    assert (last["progressPercentage"], last["estimatedRemainingSeconds"]) == (100, 0)
    assert {"loss", "step", "map_at_100"} <= {metric["name"] for metric in last["metrics"]}
