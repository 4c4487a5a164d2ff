"""Reports of runs and comparisons between them, as HTML and as text."""
