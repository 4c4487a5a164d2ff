"""Runs the trainings of a study, each a whole local run with its processes, and keeps what was scored in a file.

`runs.jsonl` gets a line when a training has ended, so a study that was killed repeats only the one that was going on.
A line belongs to a training of the same recipe text, overrides and initial values; what else a recipe imports is not
compared. Does not import TensorFlow.
"""

from __future__ import annotations

import hashlib
import json
import resource
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from absl import logging

from downpour.launch import recipes
from downpour.launch.local import Checkpoints, LocalRun, RunConfig, signals
from downpour.launch.observe import report
from downpour.launch.studying.grid import Trial

RUNS_FILE = "runs.jsonl"
_NO_SCORES = ("kind", "step", "seconds")


@dataclass(frozen=True)
class Outcome:
    """What a training came to.

    Attributes:
        trial: The training.
        scores: Every scored checkpoint in order: its step, and its scores by name.
        seconds: Of the whole run, its start included.
        cpu_s: Processor seconds of all its processes.
    """

    trial: Trial
    scores: tuple[tuple[int, dict[str, float]], ...]
    seconds: float
    cpu_s: float


class Trials:
    """Trains, unless the folder's file has the training already.

    Args:
        name: Name or path of the recipe, which can be loaded.
        overrides: Overrides of all trainings.
        folder: Of the study; made when the first training has ended.
    """

    def __init__(self, name: str, overrides: Sequence[str], folder: Path) -> None:
        self._name, self._overrides, self._folder = name, tuple(overrides), folder
        is_file = Path(name).suffix == ".py"
        self._recipe = Path(name if is_file else f"{recipes.__path__[0]}/{name}.py").read_text()
        self._done = _read(folder / RUNS_FILE)

    def is_done(self, trial: Trial) -> bool:
        """Whether the file has the training."""
        return self._key(trial) in self._done

    def of(self, trial: Trial) -> Outcome:
        """The training's outcome, out of the file or trained now.

        Raises:
            ValueError: The job is refused, or nothing was scored.
            Stopped: A signal ended the run.
            ProcessFailed: A process of it failed.
        """
        key = self._key(trial)
        if key not in self._done:
            self._done[key] = self._train(trial)
            _append(self._folder / RUNS_FILE, {"key": key, **self._done[key]})
        row = self._done[key]
        scores = tuple((int(step), found) for step, found in row["scores"])
        return Outcome(trial, scores, row["seconds"], row["cpu_s"])

    def _key(self, trial: Trial) -> str:
        parts = [self._recipe, *self._overrides, *trial.overrides, trial.init_from, *trial.init_only]
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]

    def _train(self, trial: Trial) -> dict[str, Any]:
        config = RunConfig(
            self._name,
            (*self._overrides, *trial.overrides),
            run_dir=self._folder / "run",
            checkpoints=Checkpoints(overwrite=True),
            init_from=trial.init_from,
            init_only=trial.init_only,
            print_layout=False,
            how_to_resume="the same command, which repeats this training from its beginning",
        )
        logging.info("seed %d, %s", trial.seed, " ".join(trial.overrides)[:200])
        began_s, cpu_s = time.monotonic(), _cpu_s()
        local = LocalRun(config)
        with signals.handled(local.interrupt), local:
            local.start().wait()
        scores = scores_of(config.folder)
        row = {"size": trial.size, "curve": trial.curve, "seed": trial.seed, "scores": scores}
        row |= {"seconds": round(time.monotonic() - began_s, 1), "cpu_s": round(_cpu_s() - cpu_s, 1)}
        return row


def scores_of(run_dir: Path) -> list[tuple[int, dict[str, float]]]:
    """Step and scores of every checkpoint that a run has scored, in order.

    Raises:
        ValueError: None was scored.
    """
    _, rows = report.read_history(run_dir)
    found = [(int(row["step"]), {k: v for k, v in row.items() if k not in _NO_SCORES}) for row in rows]
    if not found:
        raise ValueError(f"{run_dir}: no checkpoint was scored; a study needs held-out examples")
    return found


def _read(path: Path) -> dict[str, Any]:
    rows = {}
    for number, line in enumerate(path.read_text().splitlines() if path.exists() else [], start=1):
        try:
            row = json.loads(line)
            rows[row["key"]] = {name: row[name] for name in ("scores", "seconds", "cpu_s")}
        except (json.JSONDecodeError, KeyError, TypeError):
            logging.warning("%s, line %d is cut off; its training is repeated", path, number)
    return rows


def _append(path: Path, row: dict[str, Any]) -> None:
    """Adds a line; one that was cut off before it is ended first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    is_cut_off = path.exists() and not path.read_bytes().endswith(b"\n")
    with path.open("a") as file:
        file.write("\n" * is_cut_off + json.dumps(row) + "\n")


def _cpu_s() -> float:
    """Processor seconds of this process's children that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
