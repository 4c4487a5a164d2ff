"""`downpour simulate` and `advise`: variants, tables, files, and what they refuse."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from downpour.launch import simulate
from downpour.launch.job import recipe
from downpour.launch.roles import command_line, entry
from downpour.ps.policy.pace import Async, Bounded, Sync
from downpour.ps.policy.staleness import Divide, Keep
from tests.launch import jobs


def run(*arguments: str, command: str = "simulate") -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", "downpour.launch.cli", command, *arguments]
    return subprocess.run(line, capture_output=True, text=True, check=False, timeout=300)


def test_values_are_cut_at_commas_that_are_not_within_brackets() -> None:
    assert simulate.split("Async,Bounded(lead=4), Sync(num_gradients=3,backups=1)") == [
        "Async", "Bounded(lead=4)", "Sync(num_gradients=3,backups=1)",
    ]  # fmt: skip


def test_all_combinations_are_simulated() -> None:
    job = recipe.load("quickstart", ["exchange.overlap=false"])
    found = list(simulate.variants(job, [1, 4], ["staleness=Keep,Divide", "pace=Async,Bounded(lead=2)"]))
    assert len({variant.name for variant in found}) == 4 and len(found) == 8
    assert {variant.job.cluster.num_workers for variant in found} == {1, 4}
    assert {type(variant.job.staleness) for variant in found} == {Keep, Divide}
    assert {variant.job.pace for variant in found} == {Async(), Bounded(2)}
    [sync] = simulate.variants(job, [5], ["pace=Sync(num_gradients=4,backups=1)"])
    assert sync.job.pace == Sync(4, 1), "a pace for as many workers as are simulated"


@pytest.mark.process
def test_workers_and_variants_stand_side_by_side(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    tiny = jobs.write_recipe(tmp_path, "def job():\n    return tiny(clip=CLIPPED)\n")
    done = run(
        str(tiny), "--set=exchange.overlap=false", "--set=pace=Async(ramp=0)", "--workers=1,6", "--steps=30",
        "--vary=staleness=Keep,Drop(limit=3)",
        "--scores=2", "--seconds_per_step=2", f"--plot={tmp_path / 'a.svg'}", f"--out={tmp_path / 'a.json'}",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].split() == [
        *("workers", "variant", "steps", "examples", "map_at_100", "map_at_100_unweighted", "loss", "staleness"),
        *("p50", "p99", "dropped", "steps/s", "hours"),
    ]
    assert [line.split()[:2] for line in lines[1:5]] == [
        ["1", "staleness=Keep"], ["6", "staleness=Keep"],
        ["1", "staleness=Drop(limit=3)"], ["6", "staleness=Drop(limit=3)"],
    ]  # fmt: skip
    result = json.loads(lines[-1].removeprefix("RESULT "))
    assert result == json.loads((tmp_path / "a.json").read_text())
    one, six, _, dropping = result["runs"]
    assert one["staleness"] == [60] and one["steps_per_second"] == pytest.approx(0.5, rel=0.1)
    assert 4 < six["staleness_mean"] < 6 and six["steps_per_second"] == pytest.approx(3, rel=0.1)
    assert [point["step"] for point in six["points"]] == [15, 30] and dropping["dropped"] > 0.3
    assert "6 workers, staleness=Keep" in (tmp_path / "a.svg").read_text()
    assert "MB of memory at most" in done.stderr


@pytest.mark.slow
@pytest.mark.process
def test_advice_names_what_to_set(tmp_path: Path) -> None:
    tiny = jobs.write_recipe(tmp_path, "def job():\n    return tiny(clip=CLIPPED)\n")
    done = run(str(tiny), "--workers=4", "--steps=8", command="advise")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [line.split()[0] for line in lines[1:4]] == ["1", "4", "4"]
    result = json.loads(lines[-1].removeprefix("RESULT "))
    assert result["score"] == "map_at_100" and result["workers"] in (1, 2, 4)
    assert 0 < result["as_it_is"] <= result["recommended"] < 1
    assert all(f"--set='{change}'" in done.stdout for change in result["changes"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "no recipe; give --recipe=NAME"),
        (("quickstart", "--workers=1,many"), "--workers=many; give whole numbers"),
        (("quickstart", "--vary=staleness=Keep,Divid"), "did you mean Divide?"),
        (("quickstart", "--vary=staleness"), "--vary=staleness is not of the form KEY=VALUE,VALUE"),
        (("quickstart", "--workers=4", "--set=exchange.overlap=false", "--vary=pace=Sync(num_gradients=2)"),
         "num_gradients + backups is 2; cluster.num_workers is 4"),
        (("quickstart", "--gbit=1"), "no --seconds_per_step"),
        (("quickstart", "--times_of=nowhere"), "--times_of=nowhere: there is no nowhere/summary.json; give the folder"),
        (("quickstart", "--times_of=nowhere", "--gbit=1"), "--times_of=nowhere with --gbit; the run's times stand"),
        (("quickstart", "--scores=0"), "--scores=0; give a whole number of at least 1"),
        (("quickstart", "--stragglers=2"), "--stragglers=2; give a share of the workers"),
        (("quickstart", "--plot=a.txt"), "--plot=a.txt; give a file that ends with .svg"),
    ],
)  # fmt: skip
def test_bad_input_is_refused(
    arguments: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In this process, whose flags are removed again; refused before TensorFlow is set up."""
    monkeypatch.setattr(sys, "argv", ["downpour simulate", *arguments])

    def define() -> None:
        simulate.define()
        with pytest.raises(SystemExit) as ended:
            entry.run(lambda: simulate.run(simulate.from_flags()), role="simulate", syntax=simulate.SYNTAX)
        assert ended.value.code == entry.REFUSED

    command_line.flags_of(define)
    said = capsys.readouterr()
    assert not said.out and message in said.err.splitlines()[-1], said.err


@pytest.mark.process
def test_bad_input_is_one_line_and_exit_code_2() -> None:
    done = run("quickstart", "--workers=0")
    assert (done.returncode, done.stdout) == (2, "")
    assert "--workers=0; give 1 to 1024" in done.stderr and done.stderr.count("\n") == 1, done.stderr
