"""`downpour study`: what it refuses, and a whole small study that is killed in the middle and goes on."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from absl import flags

from downpour.launch import study
from downpour.launch.job import recipe
from downpour.launch.roles import command_line
from downpour.launch.studying.grid import Study, Trial
from downpour.launch.studying.trials import RUNS_FILE, Outcome, Trials
from tests.conftest import wait_until
from tests.launch import jobs

IMAGES = "\n\ndef job():\n    return tiny(data=ImageRecords({folder!r}, 5, resize=8, crop=8), num_steps=12)\n"

ARRAYS = """
from downpour.model.data import Examples

TARGETS = np.array([[0, 1, 0], [1, 1, 0], [0, 1, 0], [0, 0, 1]], np.float32)


def job():
    return tiny(data=Examples((np.zeros((4, 8, 8, 3), np.float32), TARGETS)))
"""


@pytest.fixture
def parse(monkeypatch: pytest.MonkeyPatch) -> Iterator[object]:
    """`parse(*arguments)`: the configuration of a command line."""
    before = set(flags.FLAGS)

    def parsed(*arguments: str) -> study.StudyConfig:
        monkeypatch.setattr(sys, "argv", ["downpour study", *arguments])
        command_line.parse("", study.SYNTAX)
        return study.from_flags()

    study.define()
    yield parsed
    for name in set(flags.FLAGS) - before:
        delattr(flags.FLAGS, name)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("", "nothing to study; give one of data-size, labels, capacity, epochs, init"),
        ("data-size", "no recipe; give --recipe=NAME"),
        ("data-size --recipe=RECIPE", "give one of --fractions=0.01,0.1,1 and --sizes=600,6000,60000"),
        ("data-size --recipe=RECIPE --fractions=0,1", "--fractions: '0' is not a number above 0 and at most 1"),
        ("data-size --recipe=RECIPE --sizes=4,25", "25 is more than the 24 training examples that there are"),
        ("data-size --recipe=RECIPE --fractions=0.5,1 --field=model.width", "--field with data-size; it is for"),
        ("data-size --recipe=RECIPE --fractions=0.5,1 --seeds=0", "--seeds=0; give at least 1"),
        ("data-size --recipe=RECIPE --fractions=0.5,1 --plot=a.jpg", "--plot=a.jpg; give a file that ends with .svg"),
        ("capacity --recipe=RECIPE", "no sizes for capacity; give at least two"),
        ("capacity --recipe=RECIPE --field=model.wdith --sizes=2,4", "did you mean model.width=2"),
        ("capacity --recipe=RECIPE --field=model.width --sizes=2", "give at least two, all different"),
        ("labels --recipe=RECIPE --sizes=2,6", "6 is more than the 5 labels that there are"),
        ("labels --recipe=RECIPE --sizes=2", "one size, 2; a study needs at least two"),
        ("epochs --recipe=RECIPE --scores=1", "--scores=1; give from 2 to 12"),
        ("epochs --recipe=RECIPE --init_from=runs/a", "--init_from with epochs; it is for init"),
        ("init --recipe=RECIPE", "give --init_from=runs/NAME"),
        ("init --recipe=RECIPE --init_from=nowhere", "--init_from=nowhere is missing"),
    ],
)  # fmt: skip
def test_mistakes_are_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, parse: object, arguments: str, message: str
) -> None:
    folder = jobs.write_images(tmp_path / "images", 24, 8)
    jobs.write_recipe(tmp_path, IMAGES.format(folder=str(folder)))
    monkeypatch.chdir(tmp_path)
    assert callable(parse)
    with pytest.raises(ValueError) as raised:
        parse(*arguments.replace("RECIPE", "tiny.py").split())
    assert message in str(raised.value)
    assert {path.name for path in tmp_path.iterdir()} <= {"images", "tiny.py", "__pycache__"}


def test_labels_of_a_study_are_the_most_frequent(tmp_path: Path, parse: object) -> None:
    recipe = jobs.write_recipe(tmp_path, ARRAYS)
    assert callable(parse)
    config = parse("labels", f"--recipe={recipe}", "--sizes=1,3", "--seeds=1", f"--out={tmp_path}")
    assert [trial.overrides for trial in config.study.trials] == [
        ("data.only_labels=1", "data.scored_labels=1", "seed=0"),
        ("data.only_labels=0,1,2", "data.scored_labels=1", "seed=0"),
    ]


def test_ctrl_c_between_two_trainings_says_how_to_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(self: Trials, trial: Trial) -> Outcome:
        raise KeyboardInterrupt

    monkeypatch.setattr(Trials, "of", interrupted)
    path = str(jobs.write_recipe(tmp_path))
    trials = Study("capacity", "width", (Trial(4, ("model.width=4",)),))
    config = study.StudyConfig(path, (), recipe.load(path), trials, "", tmp_path, tmp_path / "a.png")
    assert study.run(config) == 128 + signal.SIGINT
    assert capsys.readouterr().err == "[study] ended by SIGINT; the same command goes on after 0 trainings\n"


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.process
def test_a_study_that_was_interrupted_or_killed_goes_on(tmp_path: Path) -> None:
    folder = jobs.write_images(tmp_path / "images", 24, 8)
    recipe = jobs.write_recipe(tmp_path, IMAGES.format(folder=str(folder)))
    out = tmp_path / "out"
    command = [sys.executable, "-m", "downpour.launch.cli", "study", "data-size", f"--recipe={recipe}"]
    command += ["--sizes=8,24", "--seeds=2", "--set=cluster.num_workers=1", f"--out={out}"]

    def lines() -> list[str]:
        return (out / RUNS_FILE).read_text().splitlines() if (out / RUNS_FILE).exists() else []

    def ended_by(number: signal.Signals, after: int) -> tuple[int, str]:
        """Ends the study by a signal in the training after so many; its exit code, and what it has written."""
        with (tmp_path / "stderr").open("w") as file:
            begun = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=file)
        try:
            wait_until(lambda: len(lines()) == after, f"{after} trainings to end", 900)
            begun.send_signal(number)
            return begun.wait(120), (tmp_path / "stderr").read_text()
        finally:
            begun.kill()
            begun.wait()

    code, said = ended_by(signal.SIGINT, after=1)
    assert code == 128 + signal.SIGINT and "Traceback" not in said
    assert said.splitlines()[-1] == "[study] ended by SIGINT; the same command goes on after 1 trainings"
    first = lines()
    assert len(first) == 1
    ended_by(signal.SIGKILL, after=2)
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr
    assert "4 trainings, 2 of them done before" in done.stderr
    rows = [json.loads(line) for line in lines()]
    assert rows[0] == json.loads(first[0]) and [(row["size"], row["seed"]) for row in rows] == [
        (8, 0), (24, 0), (8, 1), (24, 1),
    ]  # fmt: skip
    result = json.loads(done.stdout.splitlines()[-1].removeprefix("RESULT "))
    assert result["sizes"] == [8, 24] and result["seeds"] == 2 and len(result["scores"]) == 2
    assert all(0 < score <= 1 for score in result["scores"]) and result["score"] == "map_at_100"
    assert (out / "study.md").read_text().startswith("| training examples | map_at_100, by seed |")
    assert (out / "study.png").exists()


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.process
def test_curves_from_random_and_from_a_checkpoint(tmp_path: Path) -> None:
    recipe = jobs.write_recipe(tmp_path)
    few = ["--set=num_steps=2400", "--set=cluster.num_workers=1"]  # seconds: a checkpoint comes up to one late
    cli = [sys.executable, "-m", "downpour.launch.cli"]
    first = [*cli, "local", f"--recipe={recipe}", f"--run_dir={tmp_path / 'first'}", "--noevaluator", *few]
    subprocess.run(first, check=True, timeout=900, capture_output=True)
    command = [*cli, "study", "init", f"--recipe={recipe}", f"--init_from={tmp_path / 'first'}", "--init_only=stem*"]
    command += [*few, "--scores=3", "--seeds=1", f"--out={tmp_path / 'out'}", f"--plot={tmp_path / 'a.svg'}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1].removeprefix("RESULT "))
    assert result["sizes"] == [800, 1600, 2400] and result["kind"] == "init"
    for curve in ("scores_random", "scores_checkpoint"):
        assert len(result[curve]) == 3 and None not in result[curve], "every checkpoint is scored"
    assert (tmp_path / "a.svg").exists()
