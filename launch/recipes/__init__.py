"""One file a recipe; each has a function `job()` that returns a complete `downpour.launch.job.Job`."""
