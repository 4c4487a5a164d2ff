"""A job and how it is made: recipes, overrides, model and layout, initial values."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from downpour.launch.job.job import Cluster, Exchange, Job

__all__ = ["Cluster", "Exchange", "Job"]


def __getattr__(name: str) -> Any:
    """Imports the job's classes on first use: a shard's process needs only `mistakes` of this package."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from downpour.launch.job import job

    return getattr(job, name)
