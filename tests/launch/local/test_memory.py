from __future__ import annotations

import os
import subprocess
import sys

import pytest

from downpour.launch.local.memory import PeakMemory


def test_largest_process_of_each_role():
    memory = PeakMemory()
    memory.rss = {"ps/0": 1 << 20, "ps/10": 3 << 20, "ps/2": 2 << 20, "chief": 5 << 20}
    memory.pss = dict(memory.rss)
    memory.processor_s = {("worker/0", 7): 2.5, ("worker/0", 8): 1.0, ("worker/1", 9): 0.25}
    assert memory.summary() == {
        "peak_rss_mb": {"ps": 3.0, "chief": 5.0},
        "peak_pss_mb": {"ps": 3.0, "chief": 5.0},
        "peak_pss_mb_by_shard": [1.0, 2.0, 3.0],
        "processor_seconds": {"worker": 3.8},
    }


def test_gone_processes_are_skipped():
    memory = PeakMemory()
    memory.sample({"worker/0": 999_999_999})
    assert memory.summary()["peak_rss_mb"] == {"worker": 0.0}


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="PSS is Linux")
def test_peaks_of_this_process_are_plausible_and_never_fall():
    memory = PeakMemory()
    memory.sample({"worker/0": os.getpid()})
    assert 0 < memory.pss["worker/0"] <= memory.rss["worker/0"]
    assert 0 < memory.processor_s["worker/0", os.getpid()] < 3600
    before = memory.pss["worker/0"] = 1 << 50
    memory.sample({"worker/0": os.getpid()})
    assert memory.pss["worker/0"] == before


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_pages_of_libraries_leave_the_process_and_come_back_when_they_are_needed() -> None:
    """In a process of its own, where numpy computes as before."""
    program = """
import re
from pathlib import Path
import numpy as np
from downpour.launch.local import memory

def resident():
    return int(re.search(r"RssFile:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])

values = np.random.default_rng(0).normal(size=(60, 60))
before, expected = resident(), np.linalg.inv(values)
memory.release_libraries()
after = resident()
assert after < before / 2, (before, after)
np.testing.assert_array_equal(np.linalg.inv(values), expected)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
