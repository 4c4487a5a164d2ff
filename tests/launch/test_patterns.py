"""Patterns that match no variable are refused by the launcher, before any role starts."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.launch.test_local import RECIPE


def test_a_frozen_pattern_that_matches_nothing_ends_the_run_before_any_role(tmp_path: Path) -> None:
    recipe = tmp_path / "tiny.py"
    recipe.write_text(RECIPE)
    run_dir = tmp_path / "run"
    command = [sys.executable, "-m", "downpour.launch.local", f"--recipe={recipe}", f"--run_dir={run_dir}"]
    ended = subprocess.run([*command, "--set=frozen=haed/*"], capture_output=True, text=True, timeout=120, check=False)
    assert ended.returncode == 2
    assert "frozen: pattern 'haed/*' matches no variable" in ended.stderr and "head/" in ended.stderr
    assert [log.name for log in (run_dir / "logs").iterdir()] == ["layout.log"]
