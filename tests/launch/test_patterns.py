"""What only the model's variables can tell: patterns that match none, shards that have nothing to update."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from downpour.launch.job import Cluster, Exchange, recipe
from downpour.launch.job.build import build
from downpour.launch.local import preflight
from downpour.ps.policy.pace import Sync
from tests.launch import jobs


def test_a_frozen_pattern_that_matches_nothing_is_refused_by_the_preflight(tmp_path: Path) -> None:
    job = recipe.load(jobs.write_recipe(tmp_path), ["frozen=haed/*"])
    with pytest.raises(ValueError, match=r"frozen: pattern 'haed/\*' matches no variable.*head/"):
        preflight.check(job, evaluator=True)


@pytest.mark.slow  # tests/launch/test_slips.py has a mistake of a recipe that ends a run likewise
@pytest.mark.process
def test_a_frozen_pattern_that_matches_nothing_ends_the_run_before_any_role(tmp_path: Path) -> None:
    job = jobs.LocalJob(jobs.write_recipe(tmp_path), tmp_path, "--set=frozen=haed/*")
    assert job.end() == 2
    assert "frozen: pattern 'haed/*' matches no variable" in job.the_error() and "head/" in job.the_error()
    assert {log.name for log in (job.run_dir / "logs").iterdir()} == {"kernels.log", "preflight.log"}


def test_sync_with_a_shard_that_has_nothing_to_update_is_refused(tmp_path: Path) -> None:
    cluster, exchange = Cluster(num_ps=150, num_workers=2), Exchange(overlap=False)
    job = replace(recipe.load(jobs.write_recipe(tmp_path)), cluster=cluster, exchange=exchange)
    build(job)
    with pytest.raises(ValueError, match="has nothing to update; give a smaller"):
        build(replace(job, pace=Sync(num_gradients=2)))
