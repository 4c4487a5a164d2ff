"""A whole job on one machine: preflight, supervised processes, progress."""
