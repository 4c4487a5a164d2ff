"""`--trace=N` of a real job: one file that Perfetto opens, with N steps of every process on one clock."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import perfetto, traces
from tests.launch import jobs
from tests.launch.test_bad_input import check_refused

pytestmark = pytest.mark.process

NUM_STEPS = 3


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Iterator[jobs.LocalJob]:
    """A job that has ended."""
    folder = tmp_path_factory.mktemp("traced")
    # The learning rate is too small to matter: every worker comes to its steps before the job has its own.
    more = "\n\ndef job():\n    return tiny(num_steps=400, schedule=Constant(1e-5), exchange=Exchange(overlap=False))\n"
    job = jobs.LocalJob(jobs.write_recipe(folder, more), folder, f"--trace={NUM_STEPS}", "--noevaluator")
    try:
        assert job.end() == 0, job.stderr
        yield job
    finally:
        job.kill()


def test_the_trace_has_every_phase_of_every_process_on_one_clock(job: jobs.LocalJob) -> None:
    trace = traces.read(job.run_dir / "trace.json")
    traces.check(trace, num_workers=2, num_shards=2, num_steps=NUM_STEPS)
    assert trace.about["recipe"] == "tiny" and trace.about["steps_of_a_worker"] == NUM_STEPS


@pytest.mark.slow  # the small version is the one above, which reads the file as the viewer does
def test_perfetto_itself_reads_every_row_and_arrow(job: jobs.LocalJob) -> None:
    mine = traces.read(job.run_dir / "trace.json")
    with perfetto.viewer(job.run_dir / "trace.json") as viewer:
        rows = viewer.query(
            "select process.name as process, thread.name as row, count(*) as spans, sum(dur) as ns from slice "
            "join thread_track on slice.track_id = thread_track.id join thread using (utid) join process using (upid) "
            "group by process, row"
        )
        assert {(process, row): spans for process, row, spans, _ in rows} == {
            (process, row): len(spans) for process, found in mine.spans.items() for row, spans in found.items()
        }
        for process, row, spans, ns in rows:
            lengths = sum(span["dur"] for span in mine.spans[process][row])
            assert ns == pytest.approx(1e3 * lengths, abs=spans), "no span is cut, though spans must be nested"
        arrows = viewer.query(
            "select a.name as a, b.name as b, count(*) as arrows from flow join slice a on slice_out = a.id "
            "join slice b on slice_in = b.id group by 1, 2"
        )
        assert arrows == [["push", "receive", len(mine.flows)]]
        assert viewer.query("select name, value from stats where severity in ('error', 'data_loss') and value") == []


def test_clocks_of_one_machine_are_found_to_be_the_same_within_the_stated_error(job: jobs.LocalJob) -> None:
    for process in traces.read(job.run_dir / "trace.json").about["processes"].values():
        assert abs(process["offset_s"]) <= process["error_s"] + 1e-6


def test_the_log_says_where_the_trace_is_and_what_opens_it(job: jobs.LocalJob) -> None:
    assert f"are in {job.run_dir}/trace.json; open it at https://ui.perfetto.dev" in job.stderr


@pytest.mark.parametrize("given", ["-1", "1001"])
def test_a_number_of_steps_that_is_out_of_bounds_is_refused(tmp_path: Path, given: str) -> None:
    jobs.write_recipe(tmp_path)
    check_refused(tmp_path, f"--trace={given}: a worker traces 1 to 1000 steps", trace_steps=int(given))


def test_on_the_command_line_too_before_anything_is_written(tmp_path: Path) -> None:
    job = jobs.LocalJob(jobs.write_recipe(tmp_path), tmp_path, "--trace=1001")
    assert job.end() == 2
    assert job.the_error() == job.stderr.rstrip("\n") and "--trace=1001: a worker traces 1 to 1000" in job.stderr
    assert not job.run_dir.exists()
