"""The study of transfer, small: real runs from a real checkpoint, with and without frozen layers, and a probe."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

from tests.benchmarks import fashion_mnist, shape


@pytest.mark.slow
@pytest.mark.process
@pytest.mark.timeout(1800)
@pytest.mark.skipif(not Path(fashion_mnist.FOLDER).is_dir(), reason="needs Debian's dataset-fashion-mnist")
def test_every_arm_learns_by_real_runs_which_are_not_repeated(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.benchmarks.transfer", "--seeds=1", f"--out={tmp_path}", *SMALL]
    found = []
    for _ in range(2):  # the second time nothing is trained again
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=shape.ROOT)
        assert done.returncode == 0, done.stdout + done.stderr
        found.append(json.loads(done.stdout.splitlines()[-1].removeprefix("RESULT ")))
    assert found[0] == found[1] and len((tmp_path / "runs.jsonl").read_text().splitlines()) == 6
    means = {arm: statistics.fmean(found[0][arm]) for arm in ("scratch", "fine_tuned", "frozen", "probe")}
    assert min(means["scratch"], means["fine_tuned"]) > 0.6
    assert min(means["frozen"], means["probe"]) > 0.2, "twice chance"


SMALL = ("--rates=1e-2", "--steps=60", "--first_images=8000", "--first_steps=300")
