"""`downpour.fit`: trains a compiled Keras model on this machine, every role a process of its own.

    run = downpour.fit(model, (x, y), epochs=3, batch_size=128, workers=2, shards=2)
    run.wait()
    run.history, run.summary, run.model

It writes a recipe, `job/recipe.py` in the folder of the run, with the model and arrays beside it, and starts a local
run of it; the same file runs on ssh, Slurm and Kubernetes. Loss, metrics, optimizer, schedule, clipping and average of
the compiled model are taken over, or refused by name.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from downpour import files
from downpour.launch.job import recipe as recipes
from downpour.launch.job.given_model import GivenModel
from downpour.launch.job.job import Cluster, Exchange, Job
from downpour.launch.job.written import Writer
from downpour.launch.local import LocalRun, RunConfig
from downpour.launch.observe import report
from downpour.launch.roles.config import Checkpoints
from downpour.model.data import Examples, Stream
from downpour.model.data.batches import positions_in_batch
from downpour.model.data.epochs import num_steps
from downpour.model.data.streams import ENDLESS
from downpour.ps.checkpoint.storage import Folder
from downpour.worker.chief import owner

if TYPE_CHECKING:
    import keras

_JOB, _RECIPE, _MODEL, _ARRAYS = "job", "recipe.py", "model.keras", "arrays"
_EXACT = Exchange(codec="float32", overlap=False)  # as plain Keras computes; on one machine bytes cost little


class FitRun(LocalRun):
    """A run of `fit`; see `LocalRun`.

    Attributes:
        recipe: Path of its recipe.
    """

    def __init__(self, config: RunConfig, model: keras.Model, steps_per_epoch: int) -> None:
        super().__init__(config)
        self.recipe = Path(config.recipe)
        self._trained, self._steps_per_epoch = model, steps_per_epoch

    @property
    def summary(self) -> dict[str, Any]:
        """The summary of the run, as in `summary.json`; empty until it has ended."""
        path = self.config.folder / report.SUMMARY_FILE
        return dict(json.loads(path.read_text())) if not self.running and path.exists() else {}

    @property
    def history(self) -> dict[str, list[float]]:
        """Loss and scores by name, one value an epoch, as `History.history` of Keras; so far.

        `loss` is the mean of what workers reported, which they do once a second; checkpoints are made and scored as
        often at most. An epoch shorter than that may have no value.
        """
        path = self.config.folder / report.HISTORY_FILE
        rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        losses: dict[int, list[float]] = {}
        history: dict[str, list[float]] = {"loss": []}
        for row in rows:
            if row["kind"] == "loss":
                losses.setdefault((row["step"] - 1) // self._steps_per_epoch, []).append(row["loss"])
            elif row["kind"] == "score":
                for name, value in row.items():
                    if name not in ("kind", "step", "seconds"):
                        history.setdefault(name, []).append(value)
        history["loss"] = [float(np.mean(values)) for _, values in sorted(losses.items())]
        return history

    @property
    def model(self) -> keras.Model:
        """The model with the values of the newest checkpoint, which are assigned to the one that was given.

        Raises:
            ValueError: There is no checkpoint.
        """
        from downpour.launch.roles import initial
        from downpour.model import weights
        from downpour.worker.step.variables import values_in

        saved = initial.load_checkpoint(str(self.config.folder))
        weights.assign(self._trained, values_in(self._trained, saved))
        if self.config.job.average is not None:  # as Keras' `use_ema`: of trained variables only
            trained = {variable.path for variable in self._trained.trainable_variables}
            average = values_in(self._trained, saved, average=True)
            weights.assign(self._trained, {name: value for name, value in average.items() if name in trained})
        return self._trained


def fit(
    model: keras.Model | Callable[[], keras.Model],
    data: Any,
    *,
    validation_data: Any = None,
    epochs: float = 1,
    batch_size: int = 32,
    workers: int = 2,
    shards: int = 2,
    class_weight: Mapping[int, float] | None = None,
    name: str = "",
    run_dir: str | Path | None = None,
    overwrite: bool = False,
    resume: bool = False,
    dry_run: bool = False,
    **job_fields: Any,
) -> FitRun:
    """Starts to train a model; returns at once.

    Args:
        model: A built and compiled `keras.Model` that has not been trained since it was compiled, or a function that
            returns one, which every process calls. The function, and what a model has of the user's own (layers,
            losses, functions within layers), must be at the top level of a file.
        data: Training examples: an array, `(x, y)` or `(x, y, sample_weight)`, nests of arrays; or `Examples` or
            `Stream` of `downpour.model.data`, whose sources are arrays or functions at the top level of a file.
        validation_data: Held-out examples likewise, scored after every epoch; with `Examples` and `Stream` they are
            part of `data`. None: nothing is scored.
        epochs: Passes over the training examples, of all workers together.
        batch_size: Examples in a batch of one worker.
        workers: Worker processes.
        shards: Parameter-server shards.
        class_weight: Weights of classes, as in Keras' `fit`.
        name: Name of the job; the model's by default.
        run_dir: Folder of the run; `runs/NAME` by default.
        overwrite: Whether an earlier run in that folder is removed.
        resume: Whether it is continued, with these arguments; model and data must be the same.
        dry_run: Whether only the recipe is written; the run that is returned is not started.
        **job_fields: Other fields of `downpour.launch.job.Job`. The exchange is float32 without overlap by default, as
            plain Keras computes.

    Raises:
        ValueError: Something is refused; nothing has been started.
    """
    if recipes.is_loading():
        raise ValueError('a process of the job imports what calls fit; call it below if __name__ == "__main__":')
    for what, given in (("workers", workers), ("shards", shards), ("batch_size", batch_size)):
        if isinstance(given, bool) or not isinstance(given, int | np.integer) or given < 1:
            raise ValueError(f"{what} is {given!r}; give a whole number of at least 1")
    unknown = set(job_fields) - ({field.name for field in dataclasses.fields(Job)} - {"model", "loss"})
    if unknown:
        raise ValueError(f"{', '.join(sorted(unknown))} cannot be given; other fields of Job can")
    examples = _examples(data, validation_data, class_weight)
    given_model = GivenModel.of(model)
    model = given_model.model
    cluster = Cluster(shards, workers, threads_per_worker=max(1, (os.cpu_count() or 1) // workers))
    steps_per_epoch, fields = _fields(model, examples, epochs, batch_size, {"cluster": cluster, **job_fields})
    fields["name"] = name or model.name
    Job(model=lambda: model, loss=None, **fields)  # raises for values that do not fit
    folder = (Path(run_dir) if run_dir is not None else Path("runs") / fields["name"]).absolute()
    checkpoints = Checkpoints(resume="yes" if resume else "no", overwrite=overwrite)
    owner.check_free(folder / owner.LOCK)  # before the files of a run that is going on are replaced
    if not (overwrite or resume):
        owner.check_new_run(folder, Folder(checkpoints.of(folder)))
    recipe = _write(given_model, fields, folder / _JOB)
    config = RunConfig(recipe, run_dir=folder, evaluator=examples.validation is not None, checkpoints=checkpoints)
    run = FitRun(config, model, steps_per_epoch)
    return run if dry_run else run.start()


def _fields(
    model: keras.Model, examples: Examples | Stream, epochs: float, batch_size: int, given: Mapping[str, Any]
) -> tuple[int, dict[str, Any]]:
    """Returns the steps of an epoch, and the fields of the job: those given, what the model says, and defaults."""
    from downpour.launch.job.compiled import from_compiled

    examples.check()
    in_batch, num_records = positions_in_batch(examples, batch_size), examples.num_records
    if num_records >= ENDLESS and "num_steps" not in given:
        raise ValueError("the stream has no num_examples, so an epoch has no length; give it that, or fit num_steps")
    steps = num_steps(epochs, num_records, in_batch) if num_records < ENDLESS else int(given["num_steps"])
    steps_per_epoch = max(1, round(num_records / in_batch)) if num_records < ENDLESS else steps
    return steps_per_epoch, {
        **from_compiled(model).job_fields(),
        "data": examples,
        "num_steps": steps,
        "batch_size": batch_size,
        "exchange": _EXACT,
        "checkpoint_every_steps": steps_per_epoch,
        **given,
    }


def _examples(data: Any, validation_data: Any, class_weight: Mapping[int, float] | None) -> Examples | Stream:
    if isinstance(data, Examples | Stream):
        if validation_data is not None or class_weight is not None:
            raise ValueError(f"data is {type(data).__name__}; give validation and class_weight to it, not to fit")
        return data
    return Examples(data, validation_data, class_weight=class_weight)


def _write(model: GivenModel, fields: Mapping[str, Any], folder: Path) -> Path:
    """Writes the recipe with the model and arrays beside it; returns its path."""
    writer = Writer(folder / _ARRAYS)
    source = model.source(writer, _MODEL)
    lines = [f"        {key}={writer.source(value, key)}," for key, value in fields.items()]
    folder.mkdir(parents=True, exist_ok=True)
    writer.save()
    model.save(folder / _MODEL)
    imports = {
        "from pathlib import Path",
        "from downpour.launch.job import Job",
        *writer.imports,
    }
    script = Path(sys.path[0]).absolute()
    text = "\n".join(
        [
            '"""A job that `downpour.fit` has written; every process of it loads this file."""',
            "",
            "import sys",
            "",
            f"sys.path.append({str(script)!r})  # of the script that called fit",
            "",
            *sorted(imports),
            "",
            "HERE = Path(__file__).parent",
            "",
            "",
            "def job() -> Job:",
            "    return Job(",
            f"        model={source},",
            "        loss=None,",
            *lines,
            "    )",
            "",
        ]
    )
    path = folder / _RECIPE
    files.write(path, text)
    return path
