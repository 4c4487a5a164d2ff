"""Refuses Keras' settings that a job cannot use, without importing Keras: another backend, another dtype.

Keras takes its backend from `KERAS_BACKEND`, else from `keras.json` in `KERAS_HOME` (`~/.keras` by default), as
https://keras.io/api/utils/config_utils says. The data format is not checked, as a job sets it itself.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

_BACKEND, _DTYPE = "tensorflow", "float32"


def check() -> None:
    """Raises `ValueError` for another backend than TensorFlow, or another `floatx` than float32."""
    file = _file()
    found = _settings(file)
    backend, source = os.environ.get("KERAS_BACKEND"), "the environment variable KERAS_BACKEND"
    if not backend:
        backend, source = found.get("backend", _BACKEND), f'"backend" in {file}'
    if backend != _BACKEND:
        raise ValueError(
            f"Keras is set to the backend {backend!r} by {source}; Downpour works with {_BACKEND!r}: "
            f"set KERAS_BACKEND={_BACKEND} in the environment of every process"
        )
    dtype = found.get("floatx", _DTYPE)
    if dtype != _DTYPE:
        raise ValueError(
            f'Keras is set to {dtype!r} by "floatx" in {file}; Downpour keeps parameters as {_DTYPE}: change the file, '
            "or set KERAS_HOME to another folder in the environment of every process"
        )


def _file() -> Path:
    """Path of Keras' settings."""
    parent = os.path.expanduser("~")
    home = os.path.join(parent if os.access(parent, os.W_OK) else "/tmp", ".keras")
    return Path(os.path.expanduser(os.environ.get("KERAS_HOME", home))) / "keras.json"


def _settings(file: Path) -> dict[str, Any]:
    """Reads the settings; empty where Keras would ignore the file, too."""
    try:
        found = json.loads(file.read_text())
    except (OSError, ValueError):
        return {}
    if not isinstance(found, dict):
        raise ValueError(f"{file} is not a JSON object; remove it, or give Keras another folder by KERAS_HOME")
    return found
