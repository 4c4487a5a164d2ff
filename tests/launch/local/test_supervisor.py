"""Supervision of small programs: no roles, no TensorFlow."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from downpour.launch.local.supervisor import Interrupted, ProcessFailed, Program, Supervisor

pytestmark = pytest.mark.process

FOREVER = "import signal; signal.pause()"
LAUNCHER = """
import os, signal, sys
from pathlib import Path
from downpour.launch.local.supervisor import Interrupted, Program, Supervisor

folder = Path(sys.argv[1])
role = '''
import os, signal, sys, time
from pathlib import Path
from downpour.launch.roles import entry

def work():
    if sys.argv[0] == "deaf":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    part = Path(folder) / f"{os.getpid()}.part"
    part.write_text(str(os.getpid()))
    part.rename(part.with_suffix(".pid"))
    signal.pause()

folder = sys.argv.pop(1)
if "--deaf" in sys.argv:
    sys.argv.remove("--deaf")
    sys.argv[0] = "deaf"
entry.run(work, role="dummy")
'''

def program(name, *more):
    return Program(name, [sys.executable, "-c", role, str(folder), f"--die_with_parent={os.getpid()}", *more])

with Supervisor(folder / "logs", os.environ, grace_s=0.3) as supervisor:
    for i in range(3):
        supervisor.start(program(f"dummy/{i}"))
    if "deaf" in sys.argv:
        supervisor.start(program("deaf", "--deaf"))
    try:
        supervisor.wait(lambda: "fail" in sys.argv and len(list(folder.glob("*.pid"))) == 3)
        raise RuntimeError("the launcher failed midway")
    except Interrupted as error:
        code = error.code
sys.exit(code)
"""


def program(name, code, *arguments, **more):
    return Program(name, [sys.executable, "-c", code, *map(str, arguments)], **more)


@pytest.fixture
def lines():
    return []


@pytest.fixture
def supervisor(tmp_path, lines):
    with Supervisor(tmp_path / "logs", os.environ, lambda *line: lines.append(line), grace_s=5) as supervisor:
        yield supervisor


def test_lines_and_logs_carry_names(supervisor, lines, tmp_path):
    supervisor.run(program("ps/3", "print('hello'); print('half', end='')"))
    assert lines == [("ps/3", "hello"), ("ps/3", "half")]
    assert (tmp_path / "logs" / "ps-3.log").read_text() == "hello\nhalf"
    assert supervisor.exit_code("ps/3") == 0


def test_a_crash_is_restarted_with_the_changed_command(supervisor, lines, tmp_path):
    crash = "import os; print('port 0'); os.kill(os.getpid(), 9)"
    supervisor.start(program("ps/0", crash))
    supervisor.change_command("ps/0", [sys.executable, "-c", "print('port 77')"])
    supervisor.wait(lambda: supervisor.exit_code("ps/0") is not None, 60)
    assert [line for _, line in lines] == [
        "port 0",
        "[ps/0] ended with signal SIGKILL; restart 1 of 3 in 0.2 s",
        "port 77",
    ]
    assert (tmp_path / "logs" / "ps-0.log").read_text() == "port 0\nport 77\n"


def test_restarts_are_bounded(supervisor, lines):
    with pytest.raises(
        ProcessFailed, match=r"worker/1 crashed 3 times, lastly with exit code 5: worker/1: x=1 .*\.log"
    ):
        supervisor.run(program("worker/1", "import sys; print('x=1'); sys.exit(5)", max_restarts=2))
    assert [line for _, line in lines].count("x=1") == 3


def test_a_traceback_is_summed_up_by_its_exception(supervisor):
    code = "class OddError(Exception): pass\nraise OddError('number 7\\n  of the\\n>')"
    with pytest.raises(ProcessFailed, match=r"worker/0 ended with exit code 1: worker/0: \S*OddError: number 7 "):
        supervisor.run(program("worker/0", code, max_restarts=0))


def test_exit_0_is_a_crash_of_an_endless_program(supervisor):
    with pytest.raises(ProcessFailed, match="ps/0 ended with exit code 0: ps/0: it wrote nothing"):
        supervisor.run(program("ps/0", "pass", endless=True, max_restarts=0))


def test_exit_2_ends_everything_with_its_message(tmp_path, is_alive, lines):
    refused = "import sys; print('[worker/0] error: no data', file=sys.stderr); print('noise'); sys.exit(2)"
    with pytest.raises(ProcessFailed) as failed:
        with Supervisor(tmp_path / "logs", os.environ, lambda *line: lines.append(line)) as supervisor:
            supervisor.start(program("ps/0", FOREVER))
            pids = supervisor.pids()
            supervisor.run(program("worker/0", refused))
    assert (failed.value.code, str(failed.value)) == (2, "worker/0: no data")
    assert len(lines) == 2, "it was restarted"
    assert list(pids) == ["ps/0"]
    assert not is_alive(pids["ps/0"])


def test_the_line_of_a_refusal_is_told_once(supervisor, lines):
    with pytest.raises(ProcessFailed, match="worker/0: no data"):
        supervisor.run(
            program("worker/0", "import sys; print('begins'); print('[worker/0] error: no data'); sys.exit(2)")
        )
    supervisor.start(program("worker/1", "import sys; print('[worker/1] error: no room'); sys.exit(2)"))
    supervisor.drain(["worker/1"], 20)
    assert supervisor.reason("worker/1") == "worker/1: no room"
    assert lines == [("worker/0", "begins")]


@pytest.mark.parametrize("then", ["print('goes on')", "pass", "sys.exit(1)"])
def test_an_error_line_of_a_process_that_is_not_refused_is_shown(supervisor, lines, then):
    supervisor.start(program("chief", f"import sys; print('[chief] error: no checkpoint'); {then}", max_restarts=0))
    supervisor.drain(["chief"], 20)
    assert ("chief", "[chief] error: no checkpoint") in lines


def test_an_error_line_of_a_process_that_goes_on_is_shown(supervisor, lines, monkeypatch):
    monkeypatch.setattr("downpour.launch.local.processes._HOLD_S", 0.1)
    supervisor.start(program("chief", f"print('[chief] error: no checkpoint', flush=True); {FOREVER}"))
    assert supervisor.wait(lambda: lines, 60)


def test_drain_names_what_does_not_end(supervisor):
    supervisor.start(program("worker/0", "import sys; sys.exit(1)"))
    supervisor.start(program("worker/1", FOREVER))
    assert supervisor.drain(["worker/0", "worker/1"], timeout_s=1.0) == ["worker/1"]
    assert list(supervisor.pids()) == ["worker/1"]


def test_a_failed_command_leaves_nothing(tmp_path, is_alive):
    with pytest.raises(FileNotFoundError):
        with Supervisor(tmp_path / "logs", os.environ) as supervisor:
            supervisor.start(program("ps/0", FOREVER))
            (pid,) = supervisor.pids().values()
            supervisor.start(Program("ps/1", ["/does/not/exist"]))
    assert not is_alive(pid)


def test_what_a_process_started_ends_with_it(tmp_path, is_alive, wait_for):
    parent = f"""
import pathlib, subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "{FOREVER}"])
pathlib.Path(sys.argv[1]).write_text(str(child.pid))
"""
    with Supervisor(tmp_path / "logs", os.environ) as supervisor:
        supervisor.run(program("worker/0", parent, tmp_path / "child"))
        wait_for(lambda: not is_alive(int((tmp_path / "child").read_text())))


def test_signals_become_interrupted_and_handlers_come_back(tmp_path):
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Interrupted) as interrupted:
        with Supervisor(tmp_path / "logs", os.environ) as supervisor:
            os.kill(os.getpid(), signal.SIGTERM)
            supervisor.wait(lambda: False, 20)
    assert interrupted.value.code == 143
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.fixture
def launcher(tmp_path, read_pids):
    """Starts a launcher of three programs in a process of its own; returns it and their process ids."""
    started = []

    def start(*options):
        process = subprocess.Popen(
            [sys.executable, "-c", LAUNCHER, str(tmp_path), *options], stderr=subprocess.DEVNULL, start_new_session=True
        )
        started.append(process)
        return process, read_pids(Path(tmp_path), 4 if "deaf" in options else 3)

    yield start
    for process in started:
        process.kill()
        process.wait()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_to_the_launcher_leaves_no_process(launcher, is_alive, group_members, number, code):
    process, pids = launcher("deaf")
    process.send_signal(number)
    assert process.wait(60) == code
    assert not [pid for pid in pids if is_alive(pid) or group_members(pid)]


def test_a_bug_in_the_launcher_leaves_no_process(launcher, is_alive, group_members):
    process, pids = launcher("fail")
    assert process.wait(60) == 1
    assert not [pid for pid in pids if is_alive(pid) or group_members(pid)]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="prctl is Linux")
def test_a_killed_launcher_leaves_no_process(launcher, is_alive, wait_for):
    process, pids = launcher()
    process.kill()
    wait_for(lambda: not [pid for pid in pids if is_alive(pid)])


def test_stop_takes_no_longer_than_needed(supervisor):
    supervisor.start(program("ps/0", FOREVER))
    began = time.monotonic()
    supervisor.stop()
    assert time.monotonic() - began < 9, "it waited until it could kill"
