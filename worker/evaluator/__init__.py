"""The evaluator, which scores checkpoints on held-out data."""
