"""Measurements at the paper's shape, each a script: `python -m tests.benchmarks.exchange --help`."""
