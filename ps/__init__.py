"""Parameter servers: a shard's vectors, update rules, ledger, checkpoints and service. Never imports TensorFlow."""

import os

# A shard's own threads are its parallelism, so BLAS, which multiplies factors, gets one. Set before numpy is imported.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
