"""What `--trace=N` refuses; tests/launch/test_observed_job.py has the trace of a real job."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.launch import jobs
from tests.launch.test_bad_input import check_refused

pytestmark = pytest.mark.process


@pytest.mark.parametrize("given", ["-1", "1001"])
def test_a_number_of_steps_that_is_out_of_bounds_is_refused(tmp_path: Path, given: str) -> None:
    jobs.write_recipe(tmp_path)
    check_refused(tmp_path, f"--trace={given}: a worker traces 1 to 1000 steps", trace_steps=int(given))


def test_on_the_command_line_too_before_anything_is_written(tmp_path: Path) -> None:
    job = jobs.LocalJob(jobs.write_recipe(tmp_path), tmp_path, "--trace=1001")
    assert job.end() == 2
    assert job.the_error() == job.stderr.rstrip("\n") and "--trace=1001: a worker traces 1 to 1000" in job.stderr
    assert not job.run_dir.exists()
