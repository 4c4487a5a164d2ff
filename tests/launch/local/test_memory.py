from __future__ import annotations

import os
import sys

import pytest

from downpour.launch.local.memory import PeakMemory


def test_largest_process_of_each_role():
    memory = PeakMemory()
    memory.rss = {"ps/0": 1 << 20, "ps/10": 3 << 20, "ps/2": 2 << 20, "chief": 5 << 20}
    memory.pss = dict(memory.rss)
    assert memory.summary() == {
        "peak_rss_mb": {"ps": 3.0, "chief": 5.0},
        "peak_pss_mb": {"ps": 3.0, "chief": 5.0},
        "peak_pss_mb_by_shard": [1.0, 2.0, 3.0],
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
    before = memory.pss["worker/0"] = 1 << 50
    memory.sample({"worker/0": os.getpid()})
    assert memory.pss["worker/0"] == before
