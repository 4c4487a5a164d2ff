"""A shard's memory: the arena in a mapped file, its undo log, the push ledger and snapshots."""
