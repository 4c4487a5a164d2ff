"""Log lines as JSON, as one process writes them and as its launcher reads them; termination messages."""

from __future__ import annotations

import datetime
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest

from downpour.launch.local.progress import JsonDisplay
from downpour.launch.local.supervisor import ProcessFailed, Program, Supervisor
from downpour.launch.roles import log_lines

PROGRAM = '''
"""The program's own words."""
import threading, warnings
from pathlib import Path
from absl import flags, logging
from downpour.launch.roles import entry

flags.DEFINE_string("end", None, "File in place of /dev/termination-log.")

def work():
    entry._TERMINATION_LOG = Path(flags.FLAGS.end or "/missing")
    entry.set_role("worker/3")
{body}

entry.run(work, role="worker")
'''

RunPython = Callable[..., "CompletedProcess[str]"]
Run = Callable[..., "CompletedProcess[str]"]


def program(body: str) -> str:
    return PROGRAM.format(body="\n".join(f"    {line}" for line in body.splitlines()))


@pytest.fixture
def run(run_python: RunPython) -> Run:
    return lambda body, *arguments: run_python(program(body), *arguments)


def entries(result: CompletedProcess[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in result.stderr.splitlines()]


LOGGING = """
logging.info("begins %d", 1)
entry.set_context(step=120, version=118)
logging.warning("two\\nlines of \\x1b")
try:
    1 / 0
except ZeroDivisionError:
    logging.exception("failed")
warnings.warn("old")
thread = threading.Thread(target=lambda: [][1], name="mine")
thread.start()
thread.join()
raise ValueError("bad; mend it")
"""


@pytest.mark.process
def test_every_line_is_an_object(run: Run, tmp_path: Path) -> None:
    (tmp_path / "end").touch()
    begin = datetime.datetime.now(datetime.UTC)
    result = run(LOGGING, "--log_format=json", f"--end={tmp_path}/end")
    assert result.returncode == 2
    first, second, failed, warned, thread, last = entries(result)
    for entry in (first, second, failed, warned, thread, last):
        assert (entry["role"], entry["index"]) == ("worker", 3)
        assert entry["time"].endswith("Z")
        at = datetime.datetime.fromisoformat(entry["time"])
        assert begin <= at <= datetime.datetime.now(datetime.UTC)
        file, _, line = entry["source"].rpartition(":")
        assert file
        assert line.isdecimal()
    assert first.keys() == {"time", "severity", "role", "index", "message", "source"}
    assert (first["severity"], first["message"]) == ("INFO", "begins 1")
    assert (second["severity"], second["message"]) == ("WARNING", "two\nlines of \x1b")
    assert (second["step"], second["version"]) == (120, 118)
    assert (failed["severity"], failed["message"]) == ("ERROR", "failed")
    assert failed["exception"].startswith("Traceback")
    assert failed["exception"].endswith("ZeroDivisionError: division by zero")
    assert "UserWarning: old" in warned["message"]
    assert thread["message"] == "thread mine ends with IndexError"
    assert "IndexError" in thread["exception"]
    assert (last["severity"], last["message"]) == ("ERROR", "bad; mend it")
    assert (tmp_path / "end").read_text() == "[worker/3] error: bad; mend it"


@pytest.mark.process
def test_a_crash_is_one_object_with_its_traceback(run: Run) -> None:
    result = run("entry.set_context(step=7)\n1 / 0", "--log_format=json")
    assert result.returncode == 1
    (crash,) = entries(result)
    assert (crash["severity"], crash["step"]) == ("CRITICAL", 7)
    assert crash["message"].startswith("ZeroDivisionError: division by zero")
    assert crash["exception"].startswith("Traceback")
    assert log_lines.as_text(json.dumps(crash)) == f"[worker/3 step=7] crashed: {crash['message']}"


@pytest.mark.process
def test_the_format_is_checked(run: Run) -> None:
    result = run("pass", "--log_format=xml")
    assert (result.returncode, result.stderr.count("\n")) == (2, 1)
    assert "value should be one of <text|json>" in result.stderr


@pytest.mark.process
@pytest.mark.parametrize(
    ("body", "arguments", "message"),
    [
        ('entry.conclude("done: %d steps", 7)', (), "[worker/3] done: 7 steps"),
        ("1 / 0", (), "[worker/3] crashed: ZeroDivisionError: division by zero"),
        ("pass", (), "before"),
        ('entry.conclude("x" * 9000)', (), f"[worker/3] {'x' * 9000}"[:4096]),
        ('raise ValueError("bad")', (f"--die_with_parent={os.getpid()}",), "before"),
    ],
)
def test_the_last_line_is_the_termination_message(
    run: Run, tmp_path: Path, body: str, arguments: tuple[str, ...], message: str
) -> None:
    end = tmp_path / "end"
    end.write_text("before")
    run(body, f"--end={end}", *arguments)
    found = end.read_text()
    assert found.startswith(message)
    assert len(found) <= 4096


@pytest.mark.process
def test_without_its_file_there_is_no_termination_message(run: Run, tmp_path: Path) -> None:
    assert run('raise ValueError("bad")', f"--end={tmp_path}/end").stderr == "[worker/3] error: bad\n"
    assert not (tmp_path / "end").exists()


def test_a_line_of_a_library_is_the_message() -> None:
    entry = json.loads(log_lines.wrapped("ps/3", "[ps/3] {raw}"))
    assert (entry["role"], entry["index"], entry["message"], entry["severity"]) == ("ps", 3, "{raw}", "INFO")
    own = log_lines.as_json("ps/3", "own", severity="WARNING", context={"version": 2})
    assert log_lines.wrapped("ps/3", own) == own
    assert log_lines.as_text(own) == "[ps/3 version=2] warning: own"
    for other in ("text", "{", '{"a": 1}', "[1]"):
        assert log_lines.as_text(other) == other


@pytest.mark.process
def test_a_launcher_knows_the_reason_out_of_a_json_line(tmp_path: Path) -> None:
    shown: list[tuple[str, str]] = []
    body = 'print("raw")\nlogging.info("begins")\nraise ValueError("no data; give some")'
    command = [sys.executable, "-u", "-c", program(body), "--log_format=json"]
    with Supervisor(tmp_path, os.environ, lambda *line: shown.append(line), handle_signals=False) as supervisor:
        with pytest.raises(ProcessFailed, match="worker/3: no data; give some") as raised:
            supervisor.run(Program("worker/3", command))
    assert raised.value.code == 2
    assert [name for name, _ in shown] == ["worker/3"] * 2  # the refusal is what is raised
    with (tmp_path / "shown").open("w") as stream, JsonDisplay(stream) as display:
        for name, text in shown:
            display.line(name, text)
    raw, begins = map(json.loads, (tmp_path / "shown").read_text().splitlines())
    assert (raw["role"], raw["index"], raw["message"], begins["message"]) == ("worker", 3, "raw", "begins")
