"""The top of `report.html` of a run, by Chromium without a window."""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path

from downpour.launch.observe.reports.run import write_report
from tests.launch.jobs import LocalJob


def draw(run: LocalJob, folder: Path) -> None:
    """Waits until the run has made some steps and was scored, then writes `report.png`."""
    history = run.run_dir / "history.jsonl"
    run.wait(lambda: history.exists() and '"score"' in history.read_text(), "a score")
    photograph(write_report(run.run_dir), folder / "report.png")


def photograph(page: Path, out: Path) -> None:
    """Writes a picture of a page as it looks on a desk."""
    with tempfile.TemporaryDirectory() as profile:
        command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
        command += [f"--user-data-dir={profile}", f"--screenshot={out}", "--window-size=1200,1700"]
        subprocess.run([*command, page.absolute().as_uri()], check=True, capture_output=True, timeout=60)
