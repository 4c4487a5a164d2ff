"""Processes that tests start load Keras without what a worker's image lacks; everybody else gets all that is here."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

IMPORTS = """
try:
    import {name}
except ImportError:
    {name} = None
found = {name}
"""


@pytest.mark.parametrize("name", ["matplotlib", "pandas", "sklearn"])
def test_keras_alone_goes_without(tmp_path: Path, name: str) -> None:
    for importer in ("keras", "other", name):
        (tmp_path / importer).mkdir()
        (tmp_path / importer / "__init__.py").touch()
    for importer in ("keras", "other"):
        (tmp_path / importer / "part.py").write_text(IMPORTS.format(name=name))
    code = "import keras.part, other.part; print(keras.part.found is None, other.part.found is None)"
    path = os.pathsep.join([os.environ["PYTHONPATH"], str(tmp_path)])
    command, environment = [sys.executable, "-c", code], os.environ | {"PYTHONPATH": path}
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    assert done.stdout == "True False\n"
