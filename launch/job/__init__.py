"""A job and how it is made: recipes, overrides, model and layout, initial values."""

from downpour.launch.job.job import Cluster, Exchange, Job

__all__ = ["Cluster", "Exchange", "Job"]
