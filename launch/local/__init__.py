"""A whole job on one machine: preflight, supervised processes, progress; as a command, and from Python."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from downpour.launch.local.config import RunConfig
    from downpour.launch.local.local_run import LocalRun, start
    from downpour.launch.local.supervisor import ProcessFailed, Stopped
    from downpour.launch.roles.config import Checkpoints

_HOMES = {
    "Checkpoints": "downpour.launch.roles.config",
    "LocalRun": "downpour.launch.local.local_run",
    "ProcessFailed": "downpour.launch.local.supervisor",
    "RunConfig": "downpour.launch.local.config",
    "Stopped": "downpour.launch.local.supervisor",
    "start": "downpour.launch.local.local_run",
}
__all__ = ["Checkpoints", "LocalRun", "ProcessFailed", "RunConfig", "Stopped", "start"]


def __getattr__(name: str) -> Any:
    """Imports a name on first use: the chief needs only `prepared` of this package."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_HOMES[name]), name)
