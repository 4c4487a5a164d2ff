"""The live view of a run in a terminal: `downpour top`, and below the log lines of a local run."""
