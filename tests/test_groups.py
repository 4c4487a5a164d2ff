"""Tests that share a fixture of their module run in one process, which makes it once."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

SHARING = """
import os
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def made():
    with Path("made").open("a") as file:
        file.write("x")


@pytest.mark.parametrize("number", range(8))
def test_shares(made, number):
    pass
"""


def test_a_fixture_of_a_module_is_made_once_by_several_processes(tmp_path: Path) -> None:
    (tmp_path / "test_sharing.py").write_text(SHARING)
    hooks = Path(__file__).with_name("conftest.py").read_text()
    (tmp_path / "conftest.py").write_text(hooks)
    command = [sys.executable, "-m", "pytest", "-q", "--numprocesses=2", "--dist=loadgroup", "-p", "no:cacheprovider"]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, timeout=120)
    assert (tmp_path / "made").read_text() == "x"
