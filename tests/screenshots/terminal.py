"""`downpour top`, as SVG by rich."""

from __future__ import annotations

import io
import time
from pathlib import Path

from rich.console import Console

from downpour.launch.observe.frame import frame
from downpour.launch.observe.status import of_folder
from downpour.launch.observe.trail import Trail
from tests.launch.jobs import LocalJob

_WIDTH, _HEIGHT = 100, 32
_STEPS, _WATCHED_S = 600, 40.0


def draw(run: LocalJob, folder: Path) -> None:
    """Follows the run for some seconds, then writes `top.svg`."""
    run.wait((run.run_dir / "chief.address").exists, "the chief")
    trail, begin = Trail(), time.monotonic()
    while not trail.status or trail.status["step"] < _STEPS or time.monotonic() - begin < _WATCHED_S:
        status = of_folder(run.run_dir) | {"run": "runs/uneven"}
        if status["state"] == "training":
            trail.add(status)
        time.sleep(1.0)
    console = Console(record=True, width=_WIDTH, file=io.StringIO(), color_system="truecolor", force_terminal=True)
    for line in frame(trail, _WIDTH, _HEIGHT):
        console.print(line, no_wrap=True)
    console.save_svg(str(folder / "top.svg"), title="downpour top runs/uneven")
