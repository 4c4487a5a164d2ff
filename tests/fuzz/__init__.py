"""Fuzzing of a real shard process and of our client by mutated recordings: `python -m tests.fuzz.run`."""
