"""Draws the pictures of docs/watching.md, docs/traces.md and docs/metrics.md from real runs; some minutes.

    python -m tests.screenshots terminal

Give names of pictures, or none for all. Each is a function of a run that trains and of the folder of the pictures.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from tests.launch.jobs import LocalJob
from tests.screenshots import grafana, job, page, report, tensorboard, terminal, trace

PICTURES: dict[str, Callable[[LocalJob, Path], None]] = {
    "terminal": terminal.draw,
    "page": page.draw,
    "report": report.draw,
    "grafana": grafana.draw,
    "tensorboard": tensorboard.draw,
    "trace": trace.draw,
}
FOLDER = Path(__file__).parents[2] / "docs" / "images"


def main() -> None:
    names = sys.argv[1:] or list(PICTURES)
    unknown = [name for name in names if name not in PICTURES]
    if unknown:
        sys.exit(f"no picture {unknown[0]!r}; there are {', '.join(PICTURES)}")
    FOLDER.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, job.running(Path(folder)) as run:
        for name in names:
            PICTURES[name](run, FOLDER)
            print(f"{name}: {FOLDER}")


if __name__ == "__main__":
    main()
