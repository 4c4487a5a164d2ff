"""Downpour: asynchronous training with parameter servers.

The five packages below this one live at the top of the checkout (`ps/`, `worker/`, `model/`, `proto/`,
`launch/`); the links beside this file give them their import names, `downpour.ps` and so on.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from downpour.launch.fit import fit as fit
    from downpour.worker.chief.sinks import Sink as Sink
    from downpour.worker.chief.tensorboard import TensorBoard as TensorBoard

__version__ = "0.1.0"

# What pip calls it: on PyPI the name `downpour` belongs to another project.
DISTRIBUTION = "downpour-training"

_PUBLIC = {
    "fit": "downpour.launch.fit",
    "Sink": "downpour.worker.chief.sinks",
    "TensorBoard": "downpour.worker.chief.tensorboard",
}


def how_to_install(extra: str) -> str:
    """The command that installs an extra of setup.py beside what is installed."""
    return f"pip install '{DISTRIBUTION}[{extra}]'"


def __getattr__(name: str) -> Any:
    """Imports what is public on first use: a shard needs nothing of it."""
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_PUBLIC[name]), name)
