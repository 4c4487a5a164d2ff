"""What a shard keeps: the arena in a mapped file, its undo log, the push ledger and snapshots."""
