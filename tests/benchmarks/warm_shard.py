"""A shard whose compiled loops are loaded before it listens, so that reading a checkpoint can be timed alone."""

from __future__ import annotations

from downpour.launch import ps
from downpour.ps.apply import kernels
from tests.benchmarks.cluster import RULE

if __name__ == "__main__":
    kernels.load(with_average=True)
    kernels.update_for(RULE)
    kernels.logged_update_for(RULE)
    ps.main()
