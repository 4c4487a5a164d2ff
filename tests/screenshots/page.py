"""The page of the chief, as PNG by chromium: wide, on a phone and in dark mode."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

from PIL import Image

from tests.browser import chromium
from tests.launch.jobs import LocalJob

_COLORS = 128  # in a picture: flat areas and text
_VIEWS: dict[str, dict[str, Any]] = {
    "page": {"viewport": {"width": 1200, "height": 2000}},
    "page_dark": {"viewport": {"width": 1200, "height": 900}, "color_scheme": "dark"},
    "page_phone": {"viewport": {"width": 360, "height": 1400}},
}
_STEP = 900  # with a dozen scores


def draw(run: LocalJob, folder: Path) -> None:
    """Waits for some curves, then writes `page.png`, `page_dark.png` and `page_phone.png`."""
    run.wait(lambda: "[local] page http" in run.stderr, "the page")
    (url,) = re.findall(r"page (http://\S+)", run.stderr)
    with chromium() as browser:
        for name, view in _VIEWS.items():
            page = browser.new_page(**view)
            page.set_default_timeout(120_000)
            page.goto(url)
            page.wait_for_selector("#curves figure:has-text('Held-out')")
            run.wait(lambda page=page: _step(page) >= _STEP, f"step {_STEP}")
            page.wait_for_selector("#findings-section:not([hidden])")
            picture = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
            picture.quantize(_COLORS, Image.Quantize.MAXCOVERAGE).save(folder / f"{name}.png", optimize=True)
            page.close()


def _step(page: Any) -> int:
    words = page.locator("#steps-text").inner_text().split()
    return int(words[1].replace(",", "")) if len(words) > 1 else 0
