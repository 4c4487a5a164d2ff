"""The system's chromium, driven by Playwright, which downloads none; and what axe-core finds on a page."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from typing import Any

import pytest


@contextlib.contextmanager
def chromium() -> Iterator[Any]:
    """A browser without a window; skips the test where there is none."""
    path = shutil.which("chromium") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("no chromium here; `apt-get install chromium` has it")
    sync_api = pytest.importorskip("playwright.sync_api", reason="pip install playwright")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        try:
            yield browser
        finally:
            browser.close()


def violations(page: Any) -> list[str]:
    """What axe-core finds on a page, with all of its rules."""
    from axe_playwright_python.sync_playwright import Axe

    return [
        f"{one['id']}: {one['help']}: {[node['html'][:150] for node in one['nodes']]}"
        for one in Axe().run(page).response["violations"]
    ]


def is_too_wide(page: Any) -> bool:
    """Whether one must scroll sideways to see all of a page."""
    return bool(page.evaluate("document.scrollingElement.scrollWidth > window.innerWidth"))
