"""TensorBoard's first page, as anybody sees it who opens it, by chromium."""

from __future__ import annotations

import contextlib
import io
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from PIL import Image

from tests.browser import chromium
from tests.launch.jobs import LocalJob

_COLORS = 128  # in a picture: flat areas and text
_SIZE = {"width": 1500, "height": 1500}
_SCORES = 8  # evaluations before it is worth looking at
_DRAWN_MS = 4000  # for curves to be drawn once their cards are there


def draw(run: LocalJob, folder: Path) -> None:
    """Waits until the run was scored a few times, then writes `tensorboard.png`."""
    history = run.run_dir / "history.jsonl"
    run.wait(lambda: history.exists() and history.read_text().count('"score"') >= _SCORES, f"{_SCORES} scores")
    with _serving(run.run_dir / "tensorboard") as url, chromium() as browser:
        page = browser.new_page(viewport=_SIZE)
        page.set_default_timeout(120_000)
        page.goto(url)
        for card in ("image-card", "scalar-card"):
            page.wait_for_selector(card)
        page.wait_for_timeout(_DRAWN_MS)
        picture = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
        picture.quantize(_COLORS, Image.Quantize.MAXCOVERAGE).save(folder / "tensorboard.png", optimize=True)


@contextlib.contextmanager
def _serving(folder: Path) -> Iterator[str]:
    """The address of a TensorBoard that shows a folder."""
    command = [sys.executable, "-m", "tensorboard.main", f"--logdir={folder}", "--host=127.0.0.1", "--port=0"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        for line in process.stderr or ():
            if found := re.search(r"at (http://\S+)", line):
                yield found[1]
                break
    finally:
        process.terminate()
        process.wait(30)
