"""Serving metrics: what is answered, what strangers cannot do, ports that are taken."""

from __future__ import annotations

import http.client
import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from downpour.launch.local import targets
from downpour.launch.observe.metrics.scrape import Scrape
from downpour.launch.observe.metrics.server import MetricsServer
from downpour.launch.observe.metrics.shard import add_staleness
from downpour.launch.roles import metrics
from downpour.launch.roles.config import Access
from tests.launch.jobs import write_recipe


def add(scrape: Scrape) -> None:
    scrape.counter("downpour_test_total", "A count.", 3, worker="1")
    scrape.state("downpour_test_state", "A state.", "b", ("a", "b"))
    add_staleness(scrape, "downpour_test_staleness", [5, 4, 3, 2, 1, 1, 7])


@pytest.fixture(name="server")
def running() -> Iterator[MetricsServer]:
    with MetricsServer(0, "127.0.0.1", add) as server:
        yield server


def get(port: int, path: str = "/metrics", **fields: str) -> tuple[int, str, str]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("GET", path, headers=fields)
    answer = connection.getresponse()
    found = answer.status, answer.headers["Content-Type"], answer.read().decode()
    connection.close()
    return found


def test_a_scrape_has_what_was_added(server: MetricsServer) -> None:
    status, kind, text = get(server.port)
    assert status == 200 and kind.startswith("text/plain")
    for line in (
        'downpour_test_total{worker="1"} 3.0',
        'downpour_test_state{state="a"} 0.0',
        'downpour_test_state{state="b"} 1.0',
        'downpour_test_staleness_bucket{le="4"} 15.0',
        'downpour_test_staleness_bucket{le="+Inf"} 23.0',
        "downpour_test_staleness_sum 67.0",
    ):
        assert f"\n{line}\n" in text, text
    assert "process_cpu_seconds_total" in text and "downpour_build_info{version=" in text
    _, kind, text = get(server.port, Accept="application/openmetrics-text; version=1.0.0")
    assert kind.startswith("application/openmetrics-text") and text.endswith("# EOF\n")


@pytest.mark.parametrize("path", ["/", "/metricsx", "/../etc/passwd"])
def test_there_is_nothing_else(server: MetricsServer, path: str) -> None:
    status, _, text = get(server.port, path)
    assert (status, text) == (404, "there is only /metrics\n")


def test_nothing_but_get_is_answered_and_nothing_tells_of_python(server: MetricsServer) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    connection.request("POST", "/metrics", body=b"x" * 100)
    answer = connection.getresponse()
    assert answer.status == 501 and answer.headers["Server"] == "downpour"
    connection.close()


def test_silent_strangers_keep_nobody_out(server: MetricsServer) -> None:
    """More of them than connections are served; each has sent a part of a request."""
    strangers = [socket.create_connection(("127.0.0.1", server.port), 10) for _ in range(60)]
    for one in strangers:
        one.sendall(b"GET /metr")
    began = time.monotonic()
    assert get(server.port)[0] == 200
    assert time.monotonic() - began < 4
    assert len(server._server._open) <= 16
    for one in strangers:
        one.close()


def test_without_a_port_nothing_is_served_and_nothing_imported() -> None:
    code = (
        "import sys\n"
        "from downpour.launch import ps\n"
        "from downpour.launch.roles import metrics\n"
        "from downpour.launch.roles.config import Access\n"
        "for port in (None, 0):\n"
        "    with metrics.serve(Access(metrics_port=port), None): pass\n"
        "assert not [name for name in sys.modules if name.startswith('prometheus_client')]\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_port_that_is_taken_is_named(server: MetricsServer) -> None:
    with pytest.raises(ValueError, match=rf"cannot listen on 127.0.0.1:{server.port} for metrics .* --metrics_port"):
        metrics.serve(Access(metrics_port=server.port, metrics_host="127.0.0.1"), add)


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "downpour.launch.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.process
def test_a_shard_whose_metrics_port_is_taken_ends_with_2_and_writes_no_port(
    server: MetricsServer, tmp_path: Path
) -> None:
    file = tmp_path / "port"
    done = run("ps", "--index=0", "--host=127.0.0.1", f"--metrics_port={server.port}", f"--port_file={file}")
    assert done.returncode == 2, done.stderr
    assert f"error: cannot listen on port {server.port} for metrics" in done.stderr.splitlines()[-1]
    assert not file.exists()


@pytest.mark.process
def test_a_local_run_whose_ports_are_taken_ends_with_2_before_anything_starts(
    server: MetricsServer, tmp_path: Path
) -> None:
    recipe, run_dir = write_recipe(tmp_path), tmp_path / "run"
    done = run("train", recipe, f"--run_dir={run_dir}", f"--metrics_port={server.port - 3}")
    assert done.returncode == 2, done.stderr
    [message] = [line for line in done.stderr.splitlines() if "error:" in line]
    assert "ps/1 cannot listen on" in message or "cannot listen on" in message
    assert message.endswith("(Address already in use); give another --metrics_port, or 0 for none")
    assert not run_dir.exists()
    done = run("train", recipe, f"--run_dir={run_dir}", f"--page_port={server.port}")
    assert done.returncode == 2 and not run_dir.exists()
    assert f"cannot listen on 127.0.0.1:{server.port} for the page: Address already in use; give" in done.stderr
    done = run("train", recipe, f"--run_dir={run_dir}", "--metrics_port=65533")
    assert done.returncode == 2 and "6 processes need a port each" in done.stderr and not run_dir.exists()


def test_targets_that_prometheus_would_not_take_are_refused(tmp_path: Path) -> None:
    done = run("monitoring", f"--out={tmp_path / 'new'}", "--targets=runs/*/metrics_targets.json")
    assert done.returncode == 2 and "at most one '*'" in done.stderr and not (tmp_path / "new").exists()


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = run("monitoring", f"--out={tmp_path / 'file'}")
    assert done.returncode == 2 and "cannot be written" in done.stderr


def test_the_file_of_targets_says_who_is_where(tmp_path: Path) -> None:
    targets.write(tmp_path, {"chief": "127.0.0.1:9100", "worker/3": "host-3:9101"})
    assert json.loads((tmp_path / targets.FILE).read_text()) == [
        {"targets": ["127.0.0.1:9100"], "labels": {"run": tmp_path.name, "role": "chief", "index": "0"}},
        {"targets": ["host-3:9101"], "labels": {"run": tmp_path.name, "role": "worker", "index": "3"}},
    ]
