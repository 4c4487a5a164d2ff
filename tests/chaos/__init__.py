"""Breaks a running job on purpose, and counts what became of every push."""
