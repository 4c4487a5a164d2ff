"""What only the model's variables can tell: patterns that match none, shards that have nothing to update."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from downpour.launch.job import Cluster, Exchange, recipe
from downpour.launch.job.build import build
from downpour.ps.policy.pace import Sync
from tests.launch.test_local import RECIPE


def test_a_frozen_pattern_that_matches_nothing_ends_the_run_before_any_role(tmp_path: Path) -> None:
    recipe = tmp_path / "tiny.py"
    recipe.write_text(RECIPE)
    run_dir = tmp_path / "run"
    command = [sys.executable, "-m", "downpour.launch.local", f"--recipe={recipe}", f"--run_dir={run_dir}"]
    ended = subprocess.run([*command, "--set=frozen=haed/*"], capture_output=True, text=True, timeout=120, check=False)
    assert ended.returncode == 2
    assert "frozen: pattern 'haed/*' matches no variable" in ended.stderr and "head/" in ended.stderr
    assert {log.name for log in (run_dir / "logs").iterdir()} == {"kernels.log", "preflight.log"}


def test_sync_with_a_shard_that_has_nothing_to_update_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "tiny.py"
    path.write_text(RECIPE)
    cluster, exchange = Cluster(num_ps=150, num_workers=2), Exchange(overlap=False)
    job = replace(recipe.load(path), cluster=cluster, exchange=exchange)
    build(job)
    with pytest.raises(ValueError, match="has nothing to update; give a smaller"):
        build(replace(job, pace=Sync(num_gradients=2)))
