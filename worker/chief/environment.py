"""What a run is carried out with: versions, the chief's machine and the layout, for the report of the run.

Reads what is installed without importing it. Names no host, no path and no secret.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from downpour import __version__
from downpour.ps.layout import Layout

_PACKAGES = {"keras": ("keras",), "tensorflow": ("tensorflow", "tensorflow-cpu"), "numpy": ("numpy",)}
_CPUINFO = Path("/proc/cpuinfo")
_MODEL = re.compile(r"^(?:model name|Model)\s*: (.+)$", re.MULTILINE)


def environment_entry(layout: Layout, description: Mapping[str, Any], step: int, seconds: float) -> dict[str, Any]:
    """The entry that a chief adds to the history when it begins, or goes on with, a job.

    Args:
        layout: Layout of the job's variables.
        description: `recipe` and `overrides` of the job, if they are known.
        step: Global step from which it goes on.
        seconds: Seconds of training so far.
    """
    kinds: dict[str, int] = {}
    for variable in layout.variables:
        kinds[variable.kind] = kinds.get(variable.kind, 0) + variable.size
    return {
        "kind": "environment",
        "step": step,
        "seconds": round(seconds, 2),
        "time": round(time.time(), 3),
        "overrides": list(description.get("overrides", ())),
        "versions": versions(),
        "machine": machine(),
        "layout": {
            "variables": len(layout.variables),
            "parameters": kinds,
            "shard_parameters": [sum(one.size for one in ranges) for ranges in layout.by_shard],
        },
    }


def versions() -> dict[str, str]:
    """Versions of Downpour, Python, and Keras, TensorFlow and numpy where they are installed."""
    found = {"downpour": __version__, "python": platform.python_version()}
    for name, distributions in _PACKAGES.items():
        for distribution in distributions:
            with contextlib.suppress(importlib.metadata.PackageNotFoundError):
                found.setdefault(name, importlib.metadata.version(distribution))
    return found


def machine() -> dict[str, Any]:
    """Processor, number of cores that this process may use, memory in bytes, and operating system."""
    try:
        model = _MODEL.search(_CPUINFO.read_text(errors="replace"))
    except OSError:
        model = None
    found = {
        "processor": model[1].strip() if model else platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        "system": f"{platform.system()} {platform.machine()}",
    }
    with contextlib.suppress(ValueError, OSError):
        found["memory_bytes"] = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return found
