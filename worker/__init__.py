"""Workers: the pure training step, the exchange with the shards, the chief and the evaluator."""
