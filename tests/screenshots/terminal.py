"""`downpour top`, as SVG by rich."""

from __future__ import annotations

import io
import re
from pathlib import Path

from rich._export_format import CONSOLE_SVG_FORMAT
from rich.console import Console

from downpour.launch.observe.status import history
from downpour.launch.observe.terminal.frame import frame
from downpour.launch.observe.terminal.trail import Trail
from downpour.launch.top import looks_at
from downpour.proto.security.config import PLAIN
from downpour.worker.chief import owner
from tests.launch.jobs import LocalJob

_WIDTH, _HEIGHT = 100, 32
_STEPS = 1600


def draw(run: LocalJob, folder: Path) -> None:
    """Waits until the run has something to show, then writes `top.svg`."""
    look = looks_at(str(run.run_dir), PLAIN)
    run.wait((run.run_dir / owner.ADDRESS).exists, "the chief")
    run.wait(lambda: (look().get("step") or 0) >= _STEPS, f"step {_STEPS}")
    trail = Trail(history(run.run_dir))
    trail.add({**look(), "run": "runs/uneven"})
    console = Console(record=True, width=_WIDTH, file=io.StringIO(), color_system="truecolor", force_terminal=True)
    for line in frame(trail, _WIDTH, _HEIGHT):
        console.print(line, no_wrap=True)
    own_fonts = re.sub(r"@font-face \{\{.*?\}\}", "", CONSOLE_SVG_FORMAT, flags=re.DOTALL)  # nothing from elsewhere
    console.save_svg(str(folder / "top.svg"), title="downpour top runs/uneven", code_format=own_fonts)
