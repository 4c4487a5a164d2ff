"""What is remembered: a shard's numbers, update rules, ledger, checkpoint and service. Never TensorFlow."""

import os
import sys

# A shard's threads are its parallelism; BLAS, which multiplies factors, must not start as many again. Before numpy.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

from downpour.ps.policy import averages, constraints, pace, rules, schedules, staleness

# Recipes may go on importing these by their shorter names: `from downpour.ps.rules import RMSProp`.
for _module in (averages, constraints, pace, rules, schedules, staleness):
    sys.modules[f"{__name__}.{_module.__name__.rpartition('.')[2]}"] = _module
