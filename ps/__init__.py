"""What is remembered: a shard's numbers, update rules, ledger, checkpoint and service. Never TensorFlow."""

import os

# A shard's threads are its parallelism; BLAS, which multiplies factors, must not start as many again. Before numpy.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
