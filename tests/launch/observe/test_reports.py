"""Reports of real runs, comparisons between them, and what folders that hold none are refused with."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from downpour.launch.observe.reports import comparison, comparison_page
from downpour.launch.observe.reports.figures import events
from downpour.launch.observe.reports.recorded import Recorded, read
from downpour.launch.observe.reports.run import page, write_report
from downpour.ps.checkpoint import manifest
from tests.launch.observe.pages import Page
from tests.worker.test_job import GIVE_UP_S, Parameters, serving, toward_one

SECTIONS = ["What ran", "Learning", "Speed", "Staleness", "Faults and recoveries", "Cost by role", "Checkpoints"]
JOB = {"name": "'test'", "num_steps": "30", "rule": "Momentum", "rule.momentum": "0.5", "seed": "1"}


def train(folder: Path, pause_s: float = 0.0, during: Callable[[], None] | None = None, **changed: str) -> Recorded:
    """Trains for 30 steps by two workers, which pause in every step; then reads the folder."""

    def step(parameters: Parameters, images: Any, labels: Any) -> Any:
        time.sleep(pause_s)
        return toward_one(parameters, images, labels)

    description = {"recipe": "test", "overrides": ["num_steps=30"], "job": JOB | changed}
    with serving(folder, description=description) as cluster:
        cluster.run_chief()
        workers = [cluster.pool.submit(cluster.work, index, step=step, overlap=False) for index in range(2)]
        if during:
            during()
        for worker in workers:
            worker.result(GIVE_UP_S)
        deadline = time.monotonic() + GIVE_UP_S
        while not (folder / "summary.json").exists():
            assert time.monotonic() < deadline
            time.sleep(0.01)
    return read(folder)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Of a run that is done, and of the same as SIGKILL leaves it in its midst."""
    top = tmp_path_factory.mktemp("runs")
    done, killed = top / "done", top / "killed"

    def copy() -> None:
        deadline = time.monotonic() + GIVE_UP_S
        while not (known(done, "checkpoint") and known(done, "progress")):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        shutil.copytree(done, killed, ignore=shutil.ignore_patterns("*.part"))  # those are being renamed

    train(done, 0.2, copy)
    return done, killed


def known(folder: Path, word: str) -> bool:
    """Whether the history has a line with a word, after which the run goes on."""
    path = folder / "history.jsonl"
    return path.exists() and f'"{word}"' in path.read_text()


@pytest.fixture
def killed(folders: tuple[Path, Path], tmp_path: Path) -> Path:
    """A copy of the run that was killed, to be spoilt."""
    shutil.copytree(folders[1], tmp_path / "killed")
    return tmp_path / "killed"


def test_the_report_has_the_numbers_of_the_run(folders: tuple[Path, Path]) -> None:
    path = write_report(folders[0])
    assert path == folders[0] / "report.html" and path.stat().st_size < 200_000
    found, run = Page(path.read_text()), read(folders[0])
    summary = json.loads((folders[0] / "summary.json").read_text())
    assert [text for level, text in found.headings if level == 2] == SECTIONS
    assert found.headings[0] == (1, "test: report of a run")
    assert f"ended by itself at step {summary['global_steps']}" in found.text
    assert found.row("Overrides") == ["--set=num_steps=30"]
    assert "Downpour 0.1.0, Python 3." in found.row("Versions")[0] and "numpy" in found.row("Versions")[0]
    assert "3 variables of 428 parameters (423 trained, 5 statistic)" in found.row("Layout")[0]
    assert "on 3 shards of" in found.row("Layout")[0] and "cores" in found.row("Chief's machine")[0]
    assert found.row("Update rule") == ["Momentum (momentum 0.5)"] and found.row("rule.momentum") == ["0.5"]
    assert {int(row[1]) for row in found.rows if row[:1] in (["0"], ["1"]) and len(row) == 10} == {
        int(totals["steps"]) for totals in run.workers.values()
    }
    assert sum(totals["steps"] for totals in run.workers.values()) == summary["pushes_acknowledged"]
    assert any(label.startswith("Training loss. loss: ") for label in found.labels)
    assert any("Where a step's time went. worker 0: input" in label and "compute 2" in label for label in found.labels)
    total = sum(summary["staleness_histogram"].values())
    assert any(label.startswith(f"Pushes by staleness, of {total:,}. 0: ") for label in found.labels)
    assert any("Examples a second, by worker" in label for label in found.labels)
    assert "No process died or fell silent" in found.text and "the checkpoint at step" in found.text
    steps = [int(one.directory.rpartition("-")[2]) for one in saved_in(folders[0])]
    for step in steps:
        assert found.row(f"step {step}")[:2] == ["yes", "whole: all checksums match"]
    assert len(steps) >= 2


def saved_in(folder: Path) -> list[manifest.Checkpoint]:
    """The checkpoints of a run."""
    whole = [one for one in (folder / "checkpoints").iterdir() if (one / manifest.MANIFEST).exists()]
    return [manifest.load(one) for one in sorted(whole)]


def test_a_run_that_was_killed_is_shown_up_to_where(killed: Path) -> None:
    history = killed / "history.jsonl"
    newest = max(one for one in (killed / "checkpoints").iterdir() if (one / manifest.MANIFEST).exists())
    lost = json.loads(history.read_text().splitlines()[-1]) | {
        "kind": "event", "event": "worker_lost", "text": "worker 1 <is gone>", "time": 1.7e9}  # fmt: skip
    environment = next(line for line in history.read_text().splitlines() if '"environment"' in line)
    nonsense = (
        '{"kind": "loss"',
        "[1]",
        '{"kind": "loss", "step": "x"}',
        "\udcff",
        '{"kind":"loss","step":1,"seconds":0}',
    )
    lines = [json.dumps(lost), environment, *nonsense]
    with history.open("a", errors="surrogateescape") as file:
        file.writelines(f"{line}\n" for line in lines)
    (newest / manifest.MANIFEST).unlink()
    run = read(killed)
    assert (run.state, run.num_unreadable) == ("stopped", 5)
    found = Page(page(run))
    assert "did not end by itself: it was stopped or killed" in found.text and f"step {run.step:,} of 30" in found.text
    assert "5 lines of its history could not be read" in found.text
    assert found.row(f"step {int(newest.name.removeprefix('step-'))}")[:2] == ["no", "incomplete: it has no manifest"]
    assert [row for row in found.rows if row[-1] == "Fault: worker 1 <is gone>"]
    assert "a chief went on with the run at step 0" in found.text
    assert "What happened when. chief: 1 events" in found.text or any("chief: 1" in one for one in found.labels)
    assert "No process died" not in found.text


def test_events_keep_their_order_whatever_the_clock_said(killed: Path) -> None:
    history = killed / "history.jsonl"
    entries = [json.loads(line) for line in history.read_text().splitlines()]
    last, environment = entries[-1], next(one for one in entries if one["kind"] == "environment")
    event = {"kind": "event", "step": last["step"], "seconds": last["seconds"]}
    added = [
        event | {"event": "worker_lost", "text": "lost an hour ahead", "time": environment["time"] + 3600},
        environment | {"step": last["step"], "seconds": last["seconds"], "time": environment["time"] - 3600},
        event | {"event": "worker_back", "text": "back in time", "time": environment["time"] - 3599},
    ]
    with history.open("a") as file:
        file.writelines(f"{json.dumps(one)}\n" for one in added)
    run, said = read(killed), "clock was set back during the run"
    assert said in page(run) and said not in page(replace(run, entries=entries))
    found = [str(one["text"]) for one, _ in events(run)]
    assert found[-3:] == ["lost an hour ahead", f"a chief went on with the run at step {last['step']}", "back in time"]


def test_a_damaged_checkpoint_is_not_called_whole(killed: Path) -> None:
    one = saved_in(killed)[0]
    path = Path(one.directory) / one.shards[1].file
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    (saved, *_) = read(killed).checkpoints
    assert not saved.is_whole and saved.words.startswith("damaged: ")
    path.unlink()
    (saved, *_) = read(killed).checkpoints
    assert saved.words == "damaged: files are missing"


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "holds no run"),
        ({"owner.lock": ""}, "has nothing to show yet"),
        ({"history.jsonl": '{"kind": "lo\n7\n'}, "has nothing to show yet"),
        ({"history.jsonl": "", "failure.txt": "no data"}, "has nothing to show yet: .*: no data"),
    ],
)
def test_a_folder_without_anything_to_show_is_refused(tmp_path: Path, files: dict[str, str], message: str) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=message):
        write_report(tmp_path)
    assert not (tmp_path / "report.html").exists()


def test_a_file_that_cannot_be_written_is_refused(folders: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"cannot write .*none/report\.html: No such file or directory"):
        write_report(folders[0], tmp_path / "none" / "report.html")


def test_values_that_are_no_numbers_and_a_run_of_an_earlier_version_are_drawn(tmp_path: Path) -> None:
    losses = [{"kind": "loss", "step": 10 * i, "seconds": i, "loss": float("nan") if i % 2 else 1.0 / i}
              for i in range(1, 2000)]  # fmt: skip
    (tmp_path / "history.jsonl").write_text("".join(json.dumps(one) + "\n" for one in losses))
    (tmp_path / "summary.json").write_text(json.dumps({"recipe": "a<b", "global_steps": 9, "loss": float("inf")}))
    text = page(read(tmp_path))
    found = Page(text)
    assert found.headings[0][1] == "a<b: report of a run" and "Nothing is recorded of faults." in found.text
    assert len(text) < 60_000, "lines have at most 400 points"


def test_200_workers_are_drawn_by_the_slowest(folders: tuple[Path, Path]) -> None:
    run = read(folders[0])
    totals = run.workers[0]
    many = {index: {**totals, "compute_seconds": totals["compute_seconds"] * (1 + index / 50)} for index in range(200)}
    found = Page(page(Recorded(**{**vars(run), "workers": many})))
    (label,) = [label for label in found.labels if label.startswith("Where a step's time went")]
    assert "worker 199:" in label and "worker 188:" in label and "worker 187:" not in label
    assert "The 12 slowest of 200 workers." in found.text and "and 160 more; history.jsonl has them" in found.text
    assert "Worker 199 takes" in found.text, "it is a finding"


def test_two_runs_with_another_rule_lie_side_by_side(folders: tuple[Path, Path], tmp_path: Path) -> None:
    other = train(tmp_path / "other", **{"rule.momentum": "0.9"})
    found = comparison.compare((read(folders[0]), other))
    assert found.head == ["done", "other", "change"]
    assert [(row.name, row.cells) for row in found.fields] == [("rule.momentum", ("0.5", "0.9"))]
    assert not found.versions and not found.unknown
    cells = {row.name: row.cells for row in found.figures}
    first = json.loads((folders[0] / "summary.json").read_text())
    assert cells["how it ended"][:2] == ("all steps", "all steps")
    assert cells["steps"][0] == str(first["global_steps"])
    assert cells["staleness, mean"][0] == f"{first['staleness_mean']:.4g}" and cells["loss"][2].endswith(("%", "same"))
    text = comparison.text(found)
    assert "fields of the job that differ  done  other" in text and "rule.momentum                  0.5   0.9" in text
    assert "Versions, machine and overrides are the same" in text
    page_of_both = Page(comparison_page.page(found))
    assert page_of_both.row("rule.momentum") == ["0.5", "0.9"]
    assert any("Training loss. done: " in label and "other: " in label for label in page_of_both.labels)


def test_seeds_of_one_job_share_a_column_with_mean_and_range(folders: tuple[Path, Path], tmp_path: Path) -> None:
    seeds = [train(tmp_path / f"seed-{seed}", seed=str(seed)) for seed in (2, 3)]
    for number, run in enumerate(seeds):  # as if the second one had been trained by another version
        path = run.folder / "history.jsonl"
        path.write_text(path.read_text().replace('"downpour": "0.1.0"', f'"downpour": "0.1.{number}"'))
    killed = read(folders[1])
    runs = (read(folders[0]), *(read(run.folder) for run in seeds), Recorded(**{**vars(killed), "job": {}}))
    found = comparison.compare(runs)
    assert [column.name for column in found.columns] == ["done, seed-2, seed-3 (seeds 1, 2, 3)", "killed"]
    values = [float(run.summary["loss"]) for run in runs[:3]]
    cells = {row.name: row.cells for row in found.figures}
    mean, low, high = (f"{value:.4g}" for value in (sum(values) / 3, min(values), max(values)))
    assert cells["loss"][0] == f"{mean} ({low} to {high}, 3 runs)"
    assert cells["how it ended"][1].startswith("stopped or killed at step ")
    assert {row.name: row.cells for row in found.versions}["downpour"] == ("0.1.0, 0.1.1", "0.1.0")
    assert found.unknown == ("killed",) and "The job of killed is not known" in comparison.text(found)
    assert "the mean, and in brackets the range" in Page(comparison_page.page(found)).text
    again = comparison.compare((runs[0], runs[0]))
    assert len(again.columns) == 2, "runs of one job and seed are laid side by side"


def test_runs_to_compare_are_two_and_different(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="1 runs to compare; give two or more"):
        comparison.different([tmp_path])
    with pytest.raises(ValueError, match="is given twice"):
        comparison.different([tmp_path, tmp_path / "x" / ".."])
