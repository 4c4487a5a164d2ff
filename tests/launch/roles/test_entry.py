"""Every case runs in a process of its own, as an exit code is what is tested."""

from __future__ import annotations

import pytest

PROGRAM = '''
"""The program's own words."""
import sys
from absl import flags, logging
from downpour.launch.roles import entry
from downpour.proto.errors import DownpourError

flags.DEFINE_integer("count", 1, "How many.", lower_bound=0)

def work():
{body}

def main():
    entry.run(work, role="worker")

main()
'''


@pytest.fixture
def run_entry(run_python):
    def run(body, *arguments):
        return run_python(PROGRAM.format(body="\n".join(f"    {line}" for line in body.splitlines())), *arguments)

    return run


@pytest.mark.process
@pytest.mark.parametrize(
    ("body", "code"),
    [("pass", 0), ("return 3", 3), ("raise KeyboardInterrupt", 130), ("raise SystemExit(7)", 7), ("1 / 0", 1)],
)
def test_exit_code(run_entry, body, code):
    assert run_entry(body).returncode == code


@pytest.mark.process
@pytest.mark.parametrize("error", ["ValueError", "DownpourError"])
def test_our_errors_are_one_line_and_exit_code_2(run_entry, error):
    result = run_entry(f'entry.set_role("worker/3")\nraise {error}("bad thing;\\n  mend it")')
    assert (result.returncode, result.stderr, result.stdout) == (2, "[worker/3] error: bad thing; mend it\n", "")


@pytest.mark.process
def test_traceback_is_shown_when_asked_for(run_entry):
    result = run_entry('raise ValueError("bad")', "--verbosity=1")
    assert result.returncode == 2
    assert "Traceback" in result.stderr
    assert result.stderr.endswith("[worker] error: bad\n")


@pytest.mark.process
def test_a_bug_shows_its_traceback(run_entry):
    assert "ZeroDivisionError" in run_entry("1 / 0").stderr


@pytest.mark.process
@pytest.mark.parametrize(
    ("argument", "message"),
    [("--cuont=1", "cuont"), ("--count=x", "count"), ("--count=-1", "count"), ("stray", "unexpected argument 'stray'")],
)
def test_refused_flags_exit_with_2(run_entry, argument, message):
    result = run_entry("print('ran')", argument)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith("[worker] error: ")
    assert message in result.stderr
    assert result.stderr.count("\n") == 1


@pytest.mark.process
def test_help_says_what_the_program_is_and_takes(run_entry):
    result = run_entry("print('ran')", "--help")
    assert result.returncode == 0
    for text in (
        "The program's own words.",
        "--count=N         How many. Default: 1.",
        "--log_format=...  <text|json>: Log",
    ):
        assert text in result.stdout, result.stdout
    assert "--die_with_parent" not in result.stdout
    assert "--die_with_parent" in run_entry("print('ran')", "--helpfull").stdout


@pytest.mark.process
def test_an_error_out_of_the_users_own_code_shows_its_calls(run_entry, tmp_path):
    path = tmp_path / "mine.py"
    path.write_text("def job():\n    return rate(0)\n\n\ndef rate(n):\n    raise ValueError('no such rate')\n")
    result = run_entry(f"import sys\nsys.path.insert(0, {str(tmp_path)!r})\nimport mine\nmine.job()")
    assert result.returncode == 2
    assert result.stderr == (
        f'  File "{path}", line 2, in job\n    return rate(0)\n'
        f"  File \"{path}\", line 6, in rate\n    raise ValueError('no such rate')\n"
        f"[worker] error: ValueError: no such rate ({path}:6)\n"
    )


@pytest.mark.process
def test_log_lines_carry_role_and_context(run_entry):
    body = """
entry.set_role("worker/3")
logging.info("begins %d", 1)
entry.set_context(step=120, version=118)
logging.info("goes on")
entry.set_context(version=None)
logging.warning("careful")
""".strip()
    assert run_entry(body).stderr.splitlines() == [
        "[worker/3] begins 1",
        "[worker/3 step=120 version=118] goes on",
        "[worker/3 step=120] warning: careful",
    ]


@pytest.mark.process
def test_a_process_whose_parent_is_already_gone_ends_at_once(run_entry):
    result = run_entry("print('ran')", "--die_with_parent=999999999")
    assert (result.returncode, result.stdout) == (143, "")
