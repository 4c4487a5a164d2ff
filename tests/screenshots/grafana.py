"""The dashboard of `downpour monitoring`, drawn by Grafana's own components from what a real Prometheus has scraped.

Grafana's server is not needed: its components of panels, legends and units (`@grafana/ui`, `@grafana/data`, Apache
licence) are installed by npm into a folder beside the system's temporary files, bundled with `grafana.jsx` by esbuild,
and drawn by Chromium. How a panel of the JSON becomes a component is `grafana.jsx`'s; it knows what our dashboard uses.
"""

from __future__ import annotations

import io
import json
import os
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

from PIL import Image

from downpour.launch import monitoring
from downpour.launch.observe.metrics import dashboard
from tests.browser import chromium
from tests.launch.fleet import free_ports
from tests.launch.jobs import LocalJob
from tests.launch.observe.prometheus import Prometheus

_UI = Path(tempfile.gettempdir()) / "downpour-grafana-ui"
_PACKAGES = (
    *(f"@grafana/{name}@13.2.3" for name in ("ui", "data", "i18n")),
    *("@fontsource/inter@5", "react@19", "react-dom@19", "esbuild@0.28"),
)
_ORIGIN = "http://grafana.invalid/"  # of a page that nobody serves but this script
_EVERY_S = 2
_WIDTH = 1400
_COLORS = 128  # in a picture
_STEPS = 400  # before the fault, and after it


def draw(run: LocalJob, folder: Path) -> None:
    """Ends a shard and its memory in the middle of the run, which the launcher starts again; writes `grafana.png`."""
    written = run.run_dir.parent / "monitoring"
    monitoring.run(monitoring.MonitoringConfig(written, (run.run_dir / "metrics_targets.json",)))
    prometheus = Prometheus(written, free_ports(1)[0], (), _EVERY_S)
    try:
        run.wait(lambda: _step(prometheus) > 0, "the first step", 600.0)
        begin_s, begin = time.time(), _step(prometheus)
        run.wait(lambda: _step(prometheus) >= begin + _STEPS, f"{_STEPS} steps", 600.0)
        [arena] = run.scratch.glob("*/shard-3.arena")
        arena.unlink()
        run.role("ps/3").kill()
        run.wait(lambda: _step(prometheus) >= begin + 2 * _STEPS, f"{_STEPS} more steps", 600.0)
        end_s = time.time()
        photograph(answered(prometheus, begin_s, end_s), begin_s, end_s, folder / "grafana.png")
    finally:
        prometheus.close()


def _step(prometheus: Prometheus) -> float:
    return max((float(one["value"][1]) for one in prometheus.query("downpour_job_step")), default=0.0)


def answered(prometheus: Prometheus, begin_s: float, end_s: float) -> dict[str, Any]:
    """The dashboard, whose targets have what Prometheus answers to them."""
    found = dashboard.dashboard()
    for panel in found["panels"]:
        for target in panel.get("targets", ()):
            query = target["expr"].replace("$run", ".*").replace("$__rate_interval", f"{4 * _EVERY_S}s")
            if target.get("instant"):
                answer = [one | {"values": [one["value"]]} for one in prometheus.query(query, end_s)]
            else:
                answer = prometheus.series(query, begin_s, end_s, _EVERY_S)
            target |= {"answer": answer, "step_s": _EVERY_S}
    return found


def photograph(shown: dict[str, Any], begin_s: float, end_s: float, out: Path) -> None:
    """Writes a picture of a dashboard with its answers."""
    values = f"window.DASHBOARD = {json.dumps(shown)}; window.RANGE_S = [{begin_s}, {end_s}];"
    html = '<!doctype html><html><head><link rel="stylesheet" href="bundle.css"></head><body style="margin: 0">'
    html += f'<div id="root" style="position: relative"></div><script>{values}</script>'
    html += '<script type="module" src="bundle.js"></script></body></html>'
    bundle = _bundle()
    icons = _UI / "node_modules/@grafana/ui/dist/public/img/icons"
    with chromium() as browser:
        page = browser.new_page(viewport={"width": _WIDTH, "height": 900})
        page.on("pageerror", lambda error: print(f"[page] {error}"))
        page.route(_ORIGIN, lambda route: route.fulfill(body=html, content_type="text/html"))
        page.route("**/bundle.js", lambda route: route.fulfill(path=bundle, content_type="text/javascript"))
        page.route(
            "**/bundle.css", lambda route: route.fulfill(path=bundle.with_suffix(".css"), content_type="text/css")
        )
        page.route(
            "**/build/img/icons/**", lambda route: route.fulfill(path=icons / route.request.url.split("/icons/")[1])
        )
        page.goto(_ORIGIN)
        page.wait_for_selector("canvas")
        page.wait_for_load_state("networkidle")
        picture = Image.open(io.BytesIO(page.screenshot(full_page=True))).convert("RGB")
    picture.quantize(_COLORS, Image.Quantize.MAXCOVERAGE).save(out, optimize=True)


def _bundle() -> Path:
    """Installs Grafana's components unless they are there, and bundles them with `grafana.jsx`."""
    modules, bundle = _UI / "node_modules", _UI / "bundle.js"
    if not (modules / "@grafana" / "ui").exists():
        install = ["npm", "install", "--no-audit", "--no-fund", "--ignore-scripts", "--legacy-peer-deps"]
        subprocess.run([*install, f"--prefix={_UI}", *_PACKAGES], check=True)
    [esbuild] = modules.glob("@esbuild/*/bin/esbuild")
    command = [esbuild, Path(__file__).with_suffix(".jsx"), "--bundle", "--format=esm", "--jsx=automatic"]
    command += ["--define:process.env.NODE_ENV='production'", "--loader:.ttf=empty", "--loader:.woff=empty"]
    command += ["--loader:.woff2=dataurl"]
    command += [f"--outfile={bundle}", "--log-level=error"]
    subprocess.run(command, check=True, env=os.environ | {"NODE_PATH": str(modules)})
    return bundle
