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
_SIZE = {"width": 1840, "height": 1210}
_SCORES, _WITHIN_S = 8, 300.0  # evaluations before it is worth looking at
_MOST_TRIES, _DRAWN_MS = 20, 4000  # for all to be loaded, and for curves to be drawn once their cards are there
_LOADED = "[...document.querySelectorAll('image-card img')].some(image => image.naturalWidth)"


def draw(run: LocalJob, folder: Path) -> None:
    """Waits until the run was scored a few times, then writes `tensorboard.png`."""
    history = run.run_dir / "history.jsonl"
    run.wait(
        lambda: history.exists() and history.read_text().count('"score"') >= _SCORES, f"{_SCORES} scores", _WITHIN_S
    )
    with _serving(run.run_dir.parent) as url, chromium() as browser:
        page = browser.new_page(viewport=_SIZE)
        page.set_default_timeout(120_000)
        page.goto(url)
        for _ in range(_MOST_TRIES):
            page.wait_for_timeout(_DRAWN_MS)
            if page.evaluate(_LOADED):
                page.wait_for_timeout(5 * _DRAWN_MS)
                break
            page.reload()
        else:
            raise TimeoutError("TensorBoard shows no picture of the evaluator")
        picture = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
        picture.quantize(_COLORS, Image.Quantize.MAXCOVERAGE).save(folder / "tensorboard.png", optimize=True)


@contextlib.contextmanager
def _serving(folder: Path) -> Iterator[str]:
    """The address of a TensorBoard that shows a folder as it is: while it reads on, it drops pictures that it named."""
    command = [sys.executable, "-m", "tensorboard.main", f"--logdir={folder}", "--reload_interval=0"]
    command += ["--host=127.0.0.1", "--port=0"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        for line in process.stderr or ():
            if found := re.search(r"at (http://\S+)", line):
                yield found[1]
                break
    finally:
        process.terminate()
        process.wait(30)
