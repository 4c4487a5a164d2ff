"""A small job, from `downpour kubernetes` to its end, with everything that its manifests say."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.kubelet import manifests
from tests.kubelet.cluster import Cluster
from tests.launch.jobs import write_recipe
from tests.launch.kubernetes.manifests import build

pytestmark = [pytest.mark.process, pytest.mark.timeout(600), pytest.mark.xdist_group("hosts")]

END_S = 300.0  # when other tests keep this machine busy; alone it takes a tenth of that


def write(tmp_path: Path) -> Path:
    recipe = write_recipe(tmp_path)
    more = ("--set=exchange.give_up_after_s=300", "--log_format=json")
    return manifests.write(tmp_path / "deploy", str(recipe), "tiny", *more)


def run(kubernetes: Cluster, folder: Path) -> None:
    """Applies a folder and waits until everything has ended; every push must have been counted once."""
    kubernetes.apply(build(folder))
    kubernetes.wait(kubernetes.all_complete, "the end of everything", END_S)
    found = manifests.summary(kubernetes, "tiny")
    assert found["global_steps"] >= 40
    assert found["pushes_acknowledged"] == found["pushes_applied_min"] == found["pushes_applied_max"]
    assert found["map_at_100"] > 0, found


def test_a_job_runs_from_its_manifests_to_its_end(kubernetes: Cluster, tmp_path: Path) -> None:
    run(kubernetes, write(tmp_path) / "base")
    assert not kubernetes.pods
    assert not any(job.failures for job in kubernetes.jobs.values()), kubernetes.describe()
    said = [text for _, text in kubernetes.events]
    assert any(text.startswith("tiny-chief-0: container ended with 0: [chief] done: ") for text in said), said
    trained = re.compile(r"tiny-worker-(\d): container ended with 0: \[worker/\1[^]]*\] trained")
    assert any(trained.fullmatch(text) for text in said), said  # the first that ends ends the others
    for index, log in enumerate(log for log in kubernetes.logs("tiny-ps").values() if log):
        first = json.loads(log.splitlines()[0])
        assert (first["role"], first["severity"]) == ("ps", "INFO"), index
        assert first["message"].startswith("listens on ")
        assert all(json.loads(line)["time"] for line in log.splitlines())


@pytest.mark.slow
@pytest.mark.parametrize("form", ["jobset", "tfjob"])
def test_a_job_runs_as_one_object(form: str, kubernetes: Cluster, tmp_path: Path) -> None:
    run(kubernetes, write(tmp_path) / form)
    assert all(pod.exit_code == 0 for pod in kubernetes.pods.values()), kubernetes.describe()
