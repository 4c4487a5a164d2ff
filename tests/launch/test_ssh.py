"""`downpour ssh`: what it makes of a file of hosts, and a job whose hosts are network namespaces."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from downpour.launch import ssh
from downpour.launch.roles import topology
from tests.benchmarks import hosts
from tests.benchmarks.hosts import Host
from tests.launch import jobs

HOSTS = """
# host     roles
me@cpu1    chief evaluator
cpu2       ps ps

gpu1       worker        # the fast one
me@gpu2    worker ps
"""

# As ssh does, it joins its arguments with blanks and has a shell on the host run them.
SSH = """#!/bin/sh
host=${{1#*@}}; shift
exec ip netns exec "$(sed -n "s/^$host //p" {names})" sh -c "$*"
"""


# Says, once each, which processes have served what a process of their role serves; until that were all.
SCRAPES = """
import json, pathlib, sys, time, urllib.request
file, left = pathlib.Path(sys.argv[1]), None
while left is None or left:
    time.sleep(0.1)
    if left is None and file.exists():
        left = {one["targets"][0]: one["labels"] for one in json.loads(file.read_text())}
    for target, labels in list((left or {}).items()):
        try:
            page = urllib.request.urlopen(f"http://{target}/metrics", timeout=2).read().decode()
        except OSError:
            continue
        own = {"chief": "downpour_job_step", "ps": "downpour_shard_", "worker": "downpour_worker_"}
        if own.get(labels["role"], "process_") in page:
            del left[target]
            print(labels["run"], labels["role"], labels["index"], target, flush=True)
"""


def run(*arguments: str, timeout_s: float = 240) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "downpour.launch.cli", "ssh", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=timeout_s)


def test_the_file_says_who_runs_where() -> None:
    places = ssh.read_hosts(HOSTS)
    assert [(place.name, place.host) for place in places] == [
        ("ps/0", "cpu2"), ("ps/1", "cpu2"), ("ps/2", "me@gpu2"), ("chief", "me@cpu1"), ("worker/0", "gpu1"),
        ("worker/1", "me@gpu2"), ("evaluator", "me@cpu1"),
    ]  # fmt: skip
    cluster = ssh.topology_of(places, 2222)
    assert cluster == topology.Topology(("cpu2:2222", "cpu2:2223", "gpu2:2224"), "cpu1:2225", num_workers=2)
    several = ssh.read_hosts(f"{HOSTS}\ncpu2 evaluator")
    assert [(one.name, one.host) for one in several[-2:]] == [("evaluator/0", "me@cpu1"), ("evaluator/1", "cpu2")]
    assert not ssh.topology_of([place for place in places if place.role != "evaluator"], 1).evaluator


def test_addresses_of_ipv6_get_their_brackets() -> None:
    cluster = ssh.topology_of(ssh.read_hosts("me@fd00::1 chief ps\nfd00::2 worker"), 2222)
    assert (cluster.ps, cluster.chief) == (("[fd00::1]:2222",), "[fd00::1]:2223")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "lists 0 ps, 0 worker, 0 chief, 0 evaluator; give one chief"),
        ("a chief chief ps worker", "lists 1 ps, 1 worker, 2 chief"),
        ("a chief worker", "lists 0 ps"),
        ("a chief ps worker\n\nb wroker", "line 3: 'wroker' is no role; roles are ps, worker, chief, evaluator"),
        ("a chief ps worker\nb # idle", "line 2: b has no role"),
    ],
)
def test_a_file_that_makes_no_cluster_is_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ssh.read_hosts(text)


@pytest.mark.process
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "no --hosts; give a file"),
        (("--hosts=/missing",), "--hosts=/missing: No such file"),
        (("--hosts={hosts}",), "no recipe; give --recipe=NAME"),
        (("--hosts={hosts}", "--recipe=quickstart", "--via=ssh"), "--via=ssh has no {}"),
        (
            ("--hosts={hosts}", "--recipe=quickstart", "--metrics_port=2220"),
            "--metrics_port=2220: shards and chief listen on 2222; give a --metrics_port above 2225, or another --port",
        ),
        (("--hosts={hosts}", "--recipe=quickstart", "--metrics_port=65535"), "7 processes need a port each"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(arguments: tuple[str, ...], message: str, tmp_path: Path) -> None:
    (tmp_path / "hosts").write_text(HOSTS)
    done = run(*(argument.replace("{hosts}", str(tmp_path / "hosts")) for argument in arguments))
    assert done.returncode == 2
    assert message in done.stderr and done.stderr.count("\n") == 1, done.stderr


def namespaces_as_hosts(folder: Path, network: hosts.Network) -> tuple[list[Host], str]:
    """The hosts, and a --via that reaches them as ssh would."""
    names = folder / "names"
    names.write_text("".join(f"{host.address} {host.prefix[-1]}\n" for host in network.shards))
    script = folder / "ssh"
    script.write_text(SSH.format(names=names))
    script.chmod(0o755)
    return list(network.shards), f"{script} {{}}"


def make_certificates(folder: Path) -> tuple[str, str]:
    """The flags for a job's certificates and its token."""
    subprocess.run(
        [sys.executable, "-m", "downpour.launch.cli", "certs", "--job=tiny", f"--out={folder / 'certs'}"], check=True
    )
    token = folder / "token"
    token.write_text("0123456789abcdef" * 4)
    token.chmod(0o600)
    return f"--tls={folder / 'certs'}", f"--token_file={token}"


@pytest.mark.process
@pytest.mark.xdist_group("hosts")
def test_a_job_on_four_hosts_trains_with_tls_and_leaves_nothing_behind(tmp_path: Path) -> None:
    reason = hosts.obstacle()
    if reason:
        pytest.skip(reason)
    arenas, run_dir = tmp_path / "arenas", tmp_path / "run"
    arenas.mkdir()
    with hosts.network(4, 0, 1000) as network:
        (a, b, c, d), via = namespaces_as_hosts(tmp_path, network)
        file = tmp_path / "hosts"
        file.write_text(
            f"{a.address} chief evaluator\nme@{b.address} ps\n{c.address} worker\n{d.address} worker ps ps\n"
        )
        scrapes = subprocess.Popen(
            [*a.prefix, sys.executable, "-c", SCRAPES, str(run_dir / "metrics_targets.json")],
            stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        done = run(
            "--metrics_port=9300",
            f"--hosts={file}", f"--via={via}", f"--recipe={jobs.write_recipe(tmp_path)}", f"--run_dir={run_dir}",
            f"--python={sys.executable}", f"--directory={Path.cwd()}", f"--arena_dir={arenas}",
            *make_certificates(tmp_path),
        )  # fmt: skip
        scrapes.terminate()
        served = sorted(scrapes.communicate(timeout=20)[0].splitlines())
        assert done.returncode == 0, done.stderr
        assert served == [
            f"run chief 0 {a.address}:9303", f"run evaluator 0 {a.address}:9306", f"run ps 0 {b.address}:9300",
            f"run ps 1 {d.address}:9301", f"run ps 2 {d.address}:9302", f"run worker 0 {c.address}:9304",
            f"run worker 1 {d.address}:9305",
        ], done.stderr  # fmt: skip
        for host in (a, b, c, d):
            left = subprocess.run(["ip", "netns", "pids", host.prefix[-1]], capture_output=True, text=True, check=True)
            assert not left.stdout, f"still running on {host.address}: {left.stdout}\n{done.stderr}"
    summary = json.loads((run_dir / "summary.json").read_text())
    assert (summary["num_ps"], summary["num_workers"]) == (3, 2), "the file decides"
    assert summary["pushes_applied_min"] == summary["pushes_applied_max"] >= 40
    assert summary["map_at_100"] is not None, "the last checkpoint is scored"
    assert not list(arenas.iterdir()), "arenas of a job that is over are removed"
    assert "ended with" not in done.stderr, "something had to be restarted, or was cut off"


@pytest.mark.process
@pytest.mark.xdist_group("hosts")
def test_without_certificates_the_roles_refuse_to_serve_the_network(tmp_path: Path) -> None:
    reason = hosts.obstacle()
    if reason:
        pytest.skip(reason)
    with hosts.network(1, 0, 1000) as network:
        (a,), via = namespaces_as_hosts(tmp_path, network)
        (tmp_path / "hosts").write_text(f"{a.address} chief ps worker\n")
        done = run(
            f"--hosts={tmp_path / 'hosts'}", f"--via={via}", f"--recipe={jobs.write_recipe(tmp_path)}",
            f"--run_dir={tmp_path / 'run'}", f"--python={sys.executable}", f"--directory={Path.cwd()}",
        )  # fmt: skip
    assert done.returncode == 2
    assert "--listen_in_plain_text_on_the_network" in done.stderr.splitlines()[-1], done.stderr
