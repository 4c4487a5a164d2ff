"""The launcher: once with small stand-ins for the roles, to see a whole run, and with the real ones, to end them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from downpour.launch.local import ProcessFailed, RunConfig, Stopped, cluster, start, training
from downpour.launch.local.config import check
from downpour.launch.observe import status_text
from downpour.launch.observe.status import of_folder
from downpour.launch.roles import topology
from tests.launch import jobs

pytestmark = pytest.mark.process

END_S = (
    120.0  # catches what hangs: a launcher may wait 30 s for a checkpoint and 10 s for processes before it kills them
)

THREE_SHARDS = """

def job():
    return tiny(num_steps=1000, cluster=Cluster(num_ps=3, num_workers=2, threads_per_worker=1))
"""

# Shard 1 dies once, after its port is known, and notes the port it is given each time. The chief waits for that.
STAND_IN = """
import json, os, pathlib, signal, sys, time
role, index = sys.argv[1], sys.argv[2]
values = dict(argument[2:].split("=", 1) for argument in sys.argv[3:] if "=" in argument)
trace = pathlib.Path(os.environ["TRACE"])
if role in ("ps", "chief"):
    port = int(values["port"]) or 5000 + int(index)
    with (trace / f"{role}-{index}").open("a") as file:
        file.write(f"{values['port']} {values.get('arena', '')}\\n")
    part = pathlib.Path(values["port_file"] + ".part")
    part.write_text(f"{port}\\n")
    part.replace(values["port_file"])
if role == "ps":
    if index == "1" and values["port"] == "0":
        while not (trace / "chief-0").exists():
            time.sleep(0.01)
        os.kill(os.getpid(), 9)
    signal.pause()
(trace / f"{role}-{index}.flags").write_text(json.dumps(values))
if role == "chief" and os.environ.get("HOLD"):
    signal.pause()
if role == "chief":
    while len((trace / "ps-1").read_text().splitlines()) < 2 or not (trace / "worker-1.flags").exists():
        time.sleep(0.01)
    folder = pathlib.Path(values["run_dir"])
    (folder / "history.jsonl").write_text(json.dumps({"kind": "loss", "step": 1, "seconds": 1, "loss": 2.0}))
    (folder / "summary.json").write_text(json.dumps({"recipe": "tiny", "global_steps": 1}))
if role == "worker" and index == "1" and os.environ.get("LATE"):
    signal.pause()  # it still looks for the chief
if role == "worker" and os.environ.get("REFUSE"):
    print("[worker/0] error: the data are missing", file=sys.stderr)
    sys.exit(2)
"""


@pytest.fixture
def tiny(tmp_path):
    return jobs.write_recipe(tmp_path, THREE_SHARDS)


@pytest.fixture
def stand_ins(tiny, tmp_path, monkeypatch):
    """The configuration of a run whose roles are stand-ins."""

    def command(role, index, values, python=sys.executable):
        return [python, "-c", STAND_IN, role, str(index), *topology.flag_arguments(values)]

    def looked_at(values):
        return [sys.executable, "-c", f"import pathlib; pathlib.Path({str(values['out'])!r}).write_text('the layout')"]

    monkeypatch.setattr(topology, "command", command)
    monkeypatch.setattr(cluster, "preflight_command", looked_at)
    monkeypatch.setenv("TRACE", str(tmp_path))
    monkeypatch.setenv("TF_CONFIG", "must not reach the roles")
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    return RunConfig(tiny, run_dir=tmp_path / "run", arena_parent=scratch)


@pytest.fixture
def run_with_stand_ins(stand_ins):
    return lambda: start(stand_ins).wait(60)


def test_a_run_from_start_to_summary(run_with_stand_ins, tmp_path, capfd):
    summary = run_with_stand_ins()
    assert summary["recipe"] == "tiny"
    assert summary["peak_rss_mb"]["ps"] > 1
    assert len(summary["peak_pss_mb_by_shard"]) == 3
    assert json.loads((tmp_path / "run" / "summary.json").read_text()) == summary
    assert (tmp_path / "run" / "learning_curve.png").exists()
    assert (tmp_path / "run" / "report.html").exists()
    assert not list((tmp_path / "scratch").iterdir())
    assert "[ps/1] ended with signal SIGKILL; restart 1 of 3" in capfd.readouterr().err


def test_roles_are_told_the_addresses_and_a_restarted_shard_keeps_its_own(run_with_stand_ins, tmp_path):
    run_with_stand_ins()
    worker = json.loads((tmp_path / "worker-1.flags").read_text())
    assert worker["ps"] == "127.0.0.1:5000,127.0.0.1:5001,127.0.0.1:5002"
    assert worker["chief"] == "127.0.0.1:5000"
    assert worker["die_with_parent"] == str(os.getpid())
    first, second = (line.split() for line in (tmp_path / "ps-1").read_text().splitlines())
    assert (first[0], second[0]) == ("0", "5001")
    assert first[1] == second[1] != ""


def test_a_worker_that_comes_too_late_is_ended_with_the_job_and_is_no_alarm(run_with_stand_ins, monkeypatch, capfd):
    monkeypatch.setenv("LATE", "1")
    monkeypatch.setattr(training, "_END_GRACE_S", 2.0)
    assert run_with_stand_ins()["recipe"] == "tiny"
    printed = capfd.readouterr().err
    assert "did not end" not in printed and "failed after" not in printed, printed


def test_a_refused_worker_ends_the_run(run_with_stand_ins, monkeypatch):
    monkeypatch.setenv("REFUSE", "1")
    monkeypatch.setattr(training, "_CLOSING_GRACE_S", 0.1)  # the stand-in of the chief never answers
    with pytest.raises(ProcessFailed, match=r"worker/\d: the data are missing") as failed:
        run_with_stand_ins()
    assert failed.value.code == 2


def test_the_status_of_a_refused_run_has_the_reason_until_the_next_start(run_with_stand_ins, tmp_path, monkeypatch):
    refusal = "import sys; print('[layout] error: the data are missing', file=sys.stderr); sys.exit(2)"
    with monkeypatch.context() as refused:
        refused.setattr(cluster, "preflight_command", lambda values: [sys.executable, "-c", refusal])
        with pytest.raises(ProcessFailed, match="preflight: the data are missing"):
            run_with_stand_ins()
    found = of_folder(tmp_path / "run")
    assert status_text.text(found).splitlines() == [
        f"{tmp_path / 'run'}: failed",
        "  failure     refused before training: preflight: the data are missing",
        "  ended by    the failure; no checkpoint was written",
    ]
    run_with_stand_ins()
    assert of_folder(tmp_path / "run")["state"] == "done"
    (tmp_path / "run" / "summary.json").unlink()
    assert of_folder(tmp_path / "run")["state"] == "stopped", "the reason is gone"


def test_a_block_that_ends_after_a_signal_was_passed_on_waits_for_the_end(stand_ins, tmp_path, monkeypatch, wait_for):
    monkeypatch.setenv("HOLD", "1")
    with start(stand_ins) as run:
        wait_for((tmp_path / "worker-1.flags").exists)
        run.interrupt(signal.SIGTERM)
    assert not run.running and not list((tmp_path / "scratch").iterdir())
    with pytest.raises(Stopped):
        run.wait(0)
    with pytest.raises(ValueError, match="was started before"):
        run.start()


@pytest.mark.parametrize("blocked", ["run", "run/logs"])
def test_a_run_folder_that_cannot_be_written_is_refused(tiny, tmp_path, blocked):
    path = tmp_path / blocked
    path.parent.mkdir(exist_ok=True)
    path.write_text("a file is in the way")
    with pytest.raises(ValueError, match="give another --run_dir"):
        check(RunConfig(tiny, run_dir=tmp_path / "run"))


@pytest.fixture
def real_launcher(tiny, tmp_path, wait_for):
    """A launcher of real shards; returns it and the processes below it, once the shards listen."""
    arguments = [f"--recipe={tiny}", f"--run_dir={tmp_path / 'run'}", f"--arena_parent={tmp_path}"]
    process = subprocess.Popen(
        [sys.executable, "-m", "downpour.launch.local", *arguments], stderr=subprocess.PIPE, stdout=subprocess.PIPE
    )
    logs = [tmp_path / "run" / "logs" / f"ps-{i}.log" for i in range(3)]
    wait_for(lambda: all(log.exists() and "listens on" in log.read_text() for log in logs), 60)
    children = psutil.Process(process.pid).children(recursive=True)
    assert len(children) >= 3
    yield process, [child.pid for child in children]
    process.kill()
    process.communicate()


@pytest.mark.slow  # tests/launch/local/test_supervisor.py has them with other programs
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_every_real_process(real_launcher, is_alive, group_members, tmp_path, number, code):
    process, pids = real_launcher
    process.send_signal(number)
    _, err = process.communicate(timeout=END_S)
    assert process.returncode == code
    assert b"every process has ended" in err
    assert b"Traceback" not in err
    assert not [pid for pid in pids if is_alive(pid) or group_members(pid)]
    assert not list(Path(tmp_path).glob("downpour-*")), "arenas were left"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="prctl is Linux")
def test_a_killed_launcher_leaves_no_real_process(real_launcher, is_alive, wait_for):
    process, pids = real_launcher
    process.kill()
    wait_for(lambda: not [pid for pid in pids if is_alive(pid)], END_S)
