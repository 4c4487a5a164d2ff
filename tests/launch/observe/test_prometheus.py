"""A real Prometheus scrapes a real run: panels have data, alerts fire when their fault is caused, names are lawful."""

from __future__ import annotations

import re
import signal
import socket
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import numpy as np
import pytest

from downpour.launch import monitoring
from downpour.launch.observe.metrics import dashboard
from downpour.launch.observe.metrics.alerts import ALERTS
from downpour.proto import codec
from downpour.proto import parameter_server_pb2 as pb
from downpour.proto.rpc.client import Channel
from downpour.ps.layout import from_canonical
from tests.conftest import wait_until
from tests.launch import jobs
from tests.launch.fleet import first_of_free, free_ports
from tests.launch.observe.prometheus import PROMETHEUS, Prometheus, needs_promtool, promtool

pytestmark = [
    pytest.mark.process,
    pytest.mark.slow,  # the small version is test_alerts, test_dashboard and test_metrics
    pytest.mark.skipif(PROMETHEUS is None, reason="there is no prometheus here (Debian package prometheus)"),
]

ROLES = ("chief", "evaluator", "ps/0", "ps/1", "worker/0")
SHORT = (("[5m]", "[8s]"), ("[10m]", "[1m]"))
PATH = "/downpour.v1.ParameterServer/"
RECIPE = jobs.PACED.replace(
    "num_steps=600, checkpoint_every_steps=50",
    "num_steps=300, checkpoint_every_steps=10, cluster=Cluster(num_ps=2, num_workers=1, threads_per_worker=1)",
)


@dataclass
class Observed:
    """What a run and a Prometheus beside it have shown.

    Attributes:
        prometheus: It still runs; the run has ended.
        begin_s: When the first step was seen, seconds since 1970.
        end_s: When the run was about to end.
        pages: What each role served in the middle of the run.
        healthy: Alerts that fired before a fault was caused.
        fired: Alerts that fired after that.
    """

    prometheus: Prometheus
    begin_s: float
    end_s: float = 0.0
    pages: dict[str, str] = field(default_factory=dict)
    healthy: set[str] = field(default_factory=set)
    fired: set[str] = field(default_factory=set)


@pytest.fixture(scope="module", name="observed")
def run_and_prometheus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Observed]:
    folder = tmp_path_factory.mktemp("prometheus")
    (folder / "slow").touch()
    first = first_of_free(len(ROLES))
    job = jobs.LocalJob(jobs.write_recipe(folder, RECIPE), folder, f"--metrics_port={first}")
    targets = (job.run_dir / "metrics_targets.json",)
    monitoring.run(monitoring.MonitoringConfig(folder / "monitoring", targets))
    prometheus = Prometheus(folder / "monitoring", free_ports(1)[0], SHORT)
    try:
        job.wait(lambda: value(prometheus, "downpour_job_step") > 0, "the first step", 2 * jobs.START_S)
        found = Observed(prometheus, time.time())
        job.wait(lambda: value(prometheus, "downpour_evaluator_step") > 0, "a score", 60.0)
        wait_until(lambda: time.time() > found.begin_s + 10, "samples of some seconds", 20.0)
        for number, role in enumerate(ROLES):
            found.pages[role] = get(first + number)
        found.healthy = prometheus.firing()
        shards = [shard_address(job, index) for index in range(2)]
        push_nan(shards[0])
        knock(shards[0], 12)
        shard = job.role("ps/1")
        shard.send_signal(signal.SIGSTOP)
        wanted = {"DownpourPushesRefused", "DownpourStrangers", "DownpourShardDown", "DownpourWorkerStuck"}

        def all_fire() -> bool:
            found.fired |= prometheus.firing()
            return wanted <= found.fired

        try:
            wait_until(all_fire, f"{wanted}", 45.0)
        finally:
            shard.send_signal(signal.SIGCONT)
        found.end_s = time.time()
        (folder / "slow").unlink()
        assert job.end() == 0, job.stderr
        wait_until(lambda: "DownpourChiefDown" in prometheus.firing(), "the end of the chief", 20.0)
        yield found
    finally:
        prometheus.close()
        job.kill()


def value(prometheus: Prometheus, expression: str) -> float:
    return max((float(series["value"][1]) for series in prometheus.query(expression)), default=0.0)


def get(port: int, path: str = "/metrics") -> str:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(f"http://127.0.0.1:{port}{path}", timeout=60) as answer:
        text: str = answer.read().decode()
        return text


def shard_address(job: jobs.LocalJob, index: int) -> str:
    [port] = [word.partition("=")[2] for word in job.role(f"ps/{index}").cmdline() if word.startswith("--port=")]
    return f"127.0.0.1:{port}" if port != "0" else listening(job, index)


def listening(job: jobs.LocalJob, index: int) -> str:
    found = re.search(r"listens on (\S+)", (job.run_dir / "logs" / f"ps-{index}.log").read_text())
    assert found
    return found[1]


def push_nan(address: str) -> None:
    """Pushes numbers that are not finite, as a worker of its own."""
    channel = Channel(address)
    status = channel.unary_unary(PATH + "Status", pb.StatusRequest.SerializeToString, pb.StatusReply.FromString)
    known = status(pb.StatusRequest(with_layout=True), timeout=60)
    header = pb.PushHeader(fingerprint=known.fingerprint, worker=3, incarnation=1, sequence=1)
    start, size = from_canonical(known.layout).chunks(0)[0]
    assert start == 0
    chunk = codec.chunk_parts(0, codec.FLOAT32, np.full(size, np.nan, np.float32), header)
    with pytest.raises(grpc.RpcError, match="not finite"):
        channel.stream_unary(PATH + "Push", pb.PushReply.FromString)(iter([chunk, chunk]), timeout=60)
    channel.close()


def knock(address: str, times: int) -> None:
    """Connects like somebody who speaks another protocol."""
    host, port = address.split(":")
    for _ in range(times):
        with socket.create_connection((host, int(port)), 10) as stranger:
            stranger.sendall(b"GET / HTTP/1.0\r\n\r\n" * 4)
            stranger.settimeout(10)
            while stranger.recv(4096):
                pass


def test_every_panel_has_data(observed: Observed) -> None:
    empty = []
    for expression in dashboard.expressions():
        query = expression.replace("$run", "run").replace("$__rate_interval", "10s")
        if not observed.prometheus.history(query, observed.begin_s, observed.end_s):
            empty.append(query)
    assert not empty


def test_alerts_fire_when_their_fault_is_caused_and_not_before(observed: Observed) -> None:
    assert not observed.healthy
    assert observed.fired >= {"DownpourPushesRefused", "DownpourStrangers", "DownpourShardDown", "DownpourWorkerStuck"}
    assert observed.fired <= {alert.name for alert in ALERTS}


def test_every_target_was_up_and_says_who_it_is(observed: Observed) -> None:
    ups = observed.prometheus.query(f"max_over_time(up[{int(time.time() - observed.begin_s)}s])")
    found = {(series["metric"]["role"], series["metric"]["index"]) for series in ups if series["value"][1] == "1"}
    assert found == {(role.partition("/")[0], role.partition("/")[2] or "0") for role in ROLES}
    assert {series["metric"]["run"] for series in ups} == {"run"}


def test_the_chief_shards_and_workers_agree(observed: Observed) -> None:
    def last(expression: str) -> float:
        return observed.prometheus.history(expression, observed.begin_s, observed.end_s)[-1]

    versions = last("max(downpour_shard_version)")
    assert last("downpour_job_step") <= versions + 1
    assert last("max(downpour_job_shard_version)") <= versions
    assert last("sum(downpour_worker_pushes_total)") == pytest.approx(last("max(downpour_shard_pushes_total)"), abs=12)
    assert last("sum(downpour_shard_received_bytes_total)") > 0
    calls = last('sum(grpc_server_call_duration_seconds_count{grpc_method="downpour.v1.ParameterServer/Push"})')
    joined = last('sum(grpc_server_call_duration_seconds_count{grpc_method="downpour.v1.ParameterServer/PushPull"})')
    assert calls + joined >= last("sum(downpour_shard_pushes_total)") - 12


@needs_promtool
@pytest.mark.parametrize("role", ROLES)
def test_promtool_has_no_objection(observed: Observed, role: str) -> None:
    done = promtool("check", "metrics", text=observed.pages[role])
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_no_label_says_where_or_who_somebody_is(observed: Observed) -> None:
    for page in observed.pages.values():
        labels = set(re.findall(r'[{,]([a-z_]+)="', page))
        assert labels <= {
            *("shard", "worker", "state", "part", "activity", "kind", "reason", "score", "folder", "le"),
            *("grpc_method", "grpc_status", "recipe", "job_id", "version"),
        }
        assert "127.0.0.1" not in page and socket.gethostname() not in page


def test_the_documents_name_what_is_served(observed: Observed) -> None:
    text = Path("docs/metrics.md").read_text()
    named = set(re.findall(r"^\| `([a-z_]+)` \|", text, re.MULTILINE))
    served = {match for page in observed.pages.values() for match in re.findall(r"^# TYPE (\S+) ", page, re.MULTILINE)}
    ours = {name for name in served if not name.startswith(("process_", "python_"))}
    assert named == ours


def test_the_dashboard_and_the_alerts_use_no_other_names(observed: Observed) -> None:
    pages = "\n".join(observed.pages.values())
    served = {name for line in pages.splitlines() if not line.startswith("#") for name in [re.split(r"[{ ]", line)[0]]}
    for expression in [*dashboard.expressions(), *(alert.expression for alert in ALERTS)]:
        bare = re.sub(r'"[^"]*"|\{[^}]*\}|\bby \([^)]*\)', "", expression)
        used = set(re.findall(r"\b((?:downpour|grpc|process)_[a-z_]+)", bare))
        assert used <= served, expression
