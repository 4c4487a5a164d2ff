"""Prometheus metrics of every role; see docs/metrics.md."""
