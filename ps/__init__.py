"""What is remembered: a shard's numbers, update rules, ledger, checkpoint and service. Never TensorFlow."""
