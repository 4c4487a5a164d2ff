"""Writes a set of pictures as records: from an importer to files that `downpour.model.data.ImageRecords` reads.

In `out` are then `train-NNNNN-of-MMMMM.tfrecord` and `heldout-...`, `labels.json`, `manifest.json` and `report.html`.
All of it is a function of the pictures and the settings: not of the number of processes, the runner, the time, or how
often the work was interrupted. It is written to `OUT.unfinished`, beside it, which is renamed when it is complete:

    OUT.unfinished/plan.json       what the plan was; written when all tasks are
    OUT.unfinished/tasks/          a task a file of records (`shards`), and its facts when it is done
    OUT.unfinished/data/           becomes OUT

A run that finds `OUT.unfinished` does the tasks that are not done.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from downpour import files
from downpour.model.vision.labels import LABELS_FILE
from downpour.model.vision.preparing import manifest, pictures, plan, report, shards
from downpour.model.vision.preparing.items import Importer
from downpour.model.vision.preparing.plan import SPLITS, Plan, Settings
from downpour.model.vision.preparing.runners import Local, Runner

MANIFEST_FILE, REPORT_FILE = "manifest.json", "report.html"
_UNFINISHED = ".unfinished"
_MOST_LINES = 20  # of progress


def prepare(
    importer: Importer,
    out: Path | str,
    settings: Settings | None = None,
    runner: Runner | None = None,
    say: Callable[[str], None] = print,
) -> str:
    """Writes the pictures that an importer lists to the folder `out`.

    An interrupted call is continued by the next with the same arguments. A folder that holds the same set is left as it
    is.

    Args:
        importer: Lists pictures and labels.
        out: Folder that does not exist yet, or is empty.
        settings: Default: `Settings()`.
        runner: Does the work; default: a process a core.
        say: Hears of progress, a line at a time.

    Returns:
        A few lines that describe the prepared set.

    Raises:
        ValueError: The pictures cannot be used (`plan.make`), `out` holds something else, or a package is missing.
    """
    runner, out = runner or Local(), Path(out).absolute()
    runner.check()
    pictures.check_installed()
    report.check_installed()
    planned = plan.make(importer, settings or Settings())
    work = out.with_name(out.name + _UNFINISHED)
    if not _is_prepared(out, planned):
        _write_all(planned, work, runner, say)
        os.replace(work / "data", out)
        done = "prepared"
    else:
        done = "is prepared already:"
    files.remove(work)
    found = json.loads((out / MANIFEST_FILE).read_text(encoding="utf-8"))
    return f"{done} {out}: {manifest.summary(found)}; see {out / REPORT_FILE}"


def _is_prepared(out: Path, planned: Plan) -> bool:
    """Whether `out` holds what was planned; False if it is free.

    Raises:
        ValueError: It holds something else.
    """
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return False
    try:
        found = json.loads((out / MANIFEST_FILE).read_text(encoding="utf-8"))["fingerprint"]
    except (OSError, ValueError, KeyError):
        raise ValueError(f"{out} exists and is not a prepared set; name a new folder, or empty this one") from None
    if found != planned.fingerprint:
        raise ValueError(
            f"{out} holds a set of other pictures or with other settings, which its {MANIFEST_FILE} lists; name a new "
            "folder, or remove this one"
        )
    return True


def _write_all(planned: Plan, work: Path, runner: Runner, say: Callable[[str], None]) -> None:
    tasks = _tasks(planned, work)
    waiting = [str(task) for task in tasks if shards.facts_of(task) is None]
    if len(waiting) < len(tasks):
        say(f"continuing: {len(tasks) - len(waiting)} of {len(tasks)} files are done")
    if waiting:
        runner.run(waiting, _progress(len(tasks) - len(waiting), len(tasks), say))
    facts = {split: shards.Facts() for split in SPLITS}
    for task in tasks:
        found = shards.facts_of(task)
        assert found is not None
        facts[task.name.partition("-")[0]].add(found)
    for split, each in facts.items():
        if not each.num_written:
            name, kind, why = each.skipped[0]
            files.remove(work)
            raise ValueError(
                f"none of the {len(each.skipped)} pictures of {split!r} can be used; the first is {name}: {kind}, {why}"
            )
    _describe(planned, facts, work / "data")


def _progress(before: int, total: int, say: Callable[[str], None]) -> Callable[[int], None]:
    """Hears of the number of tasks that are done, and says so every twentieth of all."""

    def heard(done: int) -> None:
        done += before
        if done == total or done * _MOST_LINES // total > (done - 1) * _MOST_LINES // total:
            say(f"{done} of {total} files")

    return heard


def _describe(planned: Plan, facts: dict[str, shards.Facts], data: Path) -> None:
    """Writes the labels, the manifest and the page."""
    for leftover in data.glob(".*.part"):  # of processes that were killed
        files.remove(leftover)
    planned.tree.save(data / LABELS_FILE)
    found = manifest.make(planned, facts)
    text = json.dumps(found, ensure_ascii=False, indent=1)
    files.write(data / MANIFEST_FILE, text + "\n")
    samples = [sample for split in SPLITS for sample in facts[split].samples]
    files.write(data / REPORT_FILE, report.page(found, samples, planned.tree.names))


def _tasks(planned: Plan, work: Path) -> list[Path]:
    """The files of the tasks, written unless an earlier run has.

    Raises:
        ValueError: An earlier run had another plan.
    """
    file, folder = work / "plan.json", work / "tasks"
    current: dict[str, Any] = {"state": planned.state}
    if file.exists() and json.loads(file.read_text()) != current:
        raise ValueError(
            f"{work} is what an interrupted run with other settings or other pictures has left; repeat that command to "
            "finish it, or remove this folder to begin anew"
        )
    work.parent.mkdir(parents=True, exist_ok=True)
    tasks = []
    for each in (folder, work / "data"):
        each.mkdir(parents=True, exist_ok=True)
    for task in planned.tasks(work / "data"):
        path = folder / f"{Path(task.records).stem}.json"
        if not file.exists():
            task.save(path)
        tasks.append(path)
    files.write(file, json.dumps(current))
    return tasks
