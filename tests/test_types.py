"""A canary: a type error planted across two packages must be reported."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_mypy_reports_a_planted_error(tmp_path: Path) -> None:
    for name in ("src", "proto", "ps", "worker", "model", "launch"):
        shutil.copytree(ROOT / name, tmp_path / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    if (cache := ROOT / ".mypy_cache").exists():  # of `make lint`: files that have not changed need no analysis
        shutil.copytree(cache, tmp_path / cache.name)
    entry = tmp_path / "launch" / "ps.py"
    assert "ShardServer(config.index," in entry.read_text()
    entry.write_text(entry.read_text().replace("ShardServer(config.index,", "ShardServer(str(config.index),"))
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "-p", "downpour.launch"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1, done.stdout + done.stderr
    assert 'Argument 1 to "ShardServer" has incompatible type "str"; expected "int"' in done.stdout
