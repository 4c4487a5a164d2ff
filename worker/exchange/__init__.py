"""Pushing gradients to the shards and pulling parameters from them, and when."""
