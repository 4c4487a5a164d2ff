"""A small job, from `downpour kubernetes` to its end, with everything that its manifests say."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.kubelet import manifests
from tests.kubelet.cluster import Cluster
from tests.launch.jobs import write_recipe
from tests.launch.kubernetes.manifests import build

pytestmark = [pytest.mark.process, pytest.mark.timeout(600)]

END_S = 420.0  # when other tests keep this machine busy; alone it takes a tenth of that


def test_a_job_runs_from_its_manifests_to_its_end(kubernetes: Cluster, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path)
    out = manifests.write(tmp_path / "deploy", str(recipe), "tiny", "--set=exchange.give_up_after_s=300")
    kubernetes.apply(build(out / "base"))
    kubernetes.wait(kubernetes.all_complete, "the end of all Jobs", END_S)

    found = manifests.summary(kubernetes, "tiny")
    assert found["global_steps"] >= 40
    assert found["pushes_acknowledged"] == found["pushes_applied_min"] == found["pushes_applied_max"]
    assert found["map_at_100"] > 0, found
    assert not kubernetes.pods
    assert not any(job.failures for job in kubernetes.jobs.values()), kubernetes.describe()
