"""A real Prometheus (Debian's package) beside a real run, and what it has scraped."""

from __future__ import annotations

import json
import shutil
import subprocess
import urllib.parse
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import wait_until

PROMETHEUS, PROMTOOL = shutil.which("prometheus"), shutil.which("promtool")
needs_promtool = pytest.mark.skipif(PROMTOOL is None, reason="there is no promtool here (Debian package prometheus)")


def promtool(*arguments: str | Path, text: str = "") -> subprocess.CompletedProcess[str]:
    """Runs promtool to its end."""
    assert PROMTOOL
    command = [PROMTOOL, *map(str, arguments)]
    return subprocess.run(command, input=text, capture_output=True, text=True, timeout=60, check=False)


class Prometheus:
    """A Prometheus that scrapes every second or so, and whose alerts fire at once.

    Args:
        folder: Folder that `downpour monitoring` has written.
        port: Port of its own.
        windows: Replacements in the rules, so that hours become seconds.
        every_s: Between scrapes.
    """

    def __init__(self, folder: Path, port: int, windows: Sequence[tuple[str, str]], every_s: int = 1) -> None:
        assert PROMETHEUS
        self._port = port
        config = yaml.safe_load((folder / "prometheus.yml").read_text())
        config["global"] = {"scrape_interval": f"{every_s}s", "evaluation_interval": "1s"}
        config["rule_files"] = ["quick.yml"]
        (folder / "quick.yml").write_text(_quick((folder / "alerts.yml").read_text(), windows))
        (folder / "quick_prometheus.yml").write_text(yaml.safe_dump(config))
        command = [
            PROMETHEUS,
            f"--config.file={folder / 'quick_prometheus.yml'}",
            f"--storage.tsdb.path={folder / 'db'}",
        ]
        command += [f"--web.listen-address=127.0.0.1:{port}", "--log.level=warn"]
        with (folder / "prometheus.log").open("wb") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log)
        wait_until(self._answers, "the start of Prometheus", 30.0)

    def close(self) -> None:
        """Ends it."""
        self._process.terminate()
        self._process.wait(20)

    def query(self, expression: str, at_s: float | None = None) -> list[dict[str, Any]]:
        """The series of an expression, with `metric` and `value`, now or at another time."""
        at = {} if at_s is None else {"time": str(at_s)}
        found: list[dict[str, Any]] = self._get("query", query=expression, **at)["result"]
        return found

    def series(self, expression: str, begin_s: float, end_s: float, step_s: int) -> list[dict[str, Any]]:
        """The series of an expression over time, with `metric` and `values`."""
        times = {"start": str(begin_s), "end": str(end_s), "step": str(step_s)}
        found: list[dict[str, Any]] = self._get("query_range", query=expression, **times)["result"]
        return found

    def history(self, expression: str, begin_s: float, end_s: float) -> list[float]:
        """All values of an expression, of every series, second by second; not those that are no numbers."""
        values = [float(value) for one in self.series(expression, begin_s, end_s, 1) for _, value in one["values"]]
        return [value for value in values if value == value]

    def firing(self) -> set[str]:
        """Names of the alerts that fire."""
        return {series["metric"]["alertname"] for series in self.query('ALERTS{alertstate="firing"}')}

    def _answers(self) -> bool:
        try:
            self._get("query", query="1")
        except OSError:
            return False
        return True

    def _get(self, what: str, **parameters: str) -> dict[str, Any]:
        url = f"http://127.0.0.1:{self._port}/api/v1/{what}?{urllib.parse.urlencode(parameters)}"
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(url, timeout=10) as answer:
            found = json.load(answer)
        assert found["status"] == "success", found
        data: dict[str, Any] = found["data"]
        return data


def _quick(rules: str, windows: Sequence[tuple[str, str]]) -> str:
    for long, short in windows:
        rules = rules.replace(long, short)
    found = yaml.safe_load(rules)
    for rule in found["groups"][0]["rules"]:
        rule["for"] = "0s"
    return yaml.safe_dump(found)
