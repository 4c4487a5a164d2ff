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
import inspect
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from downpour import files
from downpour.launch.fitting import words
from downpour.launch.fitting.callbacks import converted
from downpour.launch.fitting.classes import check_classes
from downpour.launch.fitting.progress import verbosity
from downpour.launch.fitting.run import FitRun
from downpour.launch.job import recipe as recipes
from downpour.launch.job.epochs import epochs_of, steps_of
from downpour.launch.job.given_model import GivenModel
from downpour.launch.job.job import Cluster, Exchange, Job
from downpour.launch.job.overrides import did_you_mean
from downpour.launch.job.written import Writer
from downpour.launch.local import RunConfig, targets
from downpour.launch.roles.config import Checkpoints
from downpour.model.data import Examples, Stream
from downpour.model.data.given import data_set, named_as_given
from downpour.model.data.streams import ENDLESS
from downpour.model.keras_private import has_automatic_name
from downpour.proto.spans import check_steps
from downpour.ps.checkpoint import manifest as checkpoint
from downpour.ps.checkpoint.storage import Folder
from downpour.worker.chief import owner
from downpour.worker.chief.callbacks import check_scores

if TYPE_CHECKING:
    import keras

_JOB, _RECIPE, _MODEL, _ARRAYS = "job", "recipe.py", "model.keras", "arrays"
_EXACT = Exchange(codec="float32", overlap=False)  # as plain Keras computes; on one machine bytes cost little

_ONE_TUPLE = "give inputs and targets as one tuple: fit(model, (x, y)), or (x, y, sample_weight)"
_OF_KERAS = {  # arguments of Keras' `fit`, and what is given in their place
    "x": _ONE_TUPLE,
    "y": _ONE_TUPLE,
    "sample_weight": _ONE_TUPLE,
    "validation_split": "nothing is split off; give held-out examples as validation_data=(x, y)",
    "validation_freq": "every epoch is scored; leave it out",
    "initial_epoch": "resume=True continues a run where it has ended",
    "shuffle": "give Examples(data, shuffle=False) as data",
}


@words.spoken()
def fit(
    model: keras.Model | Callable[[], keras.Model],
    data: Any = None,
    *unnamed: Any,
    validation_data: Any = None,
    validation_sets: Mapping[str, Any] | None = None,
    epochs: float = 1,
    batch_size: int | None = None,
    workers: int = 2,
    shards: int = 2,
    class_weight: Mapping[int, float] | None = None,
    callbacks: Any = None,
    verbose: int | str = "auto",
    name: str = "",
    run_dir: str | Path | None = None,
    overwrite: bool = False,
    resume: bool = False,
    dry_run: bool = False,
    trace: int = 0,
    metrics_port: int = 0,
    **job_fields: Any,
) -> FitRun:
    """Starts to train a model; returns at once.

    Args:
        model: A built and compiled `keras.Model` that has not been trained since it was compiled, or a function that
            returns one, which every process calls. The function, and what a model has of the user's own (layers,
            losses, functions within layers), must be at the top level of a file.
        data: Training examples: an array, `(x, y)` or `(x, y, sample_weight)`, nests of arrays; anything with length
            and index that can be pickled, such as a Hugging Face or torch data set, a `keras.utils.PyDataset` or a
            Grain `MapDataset`; a function at the top level of a file that returns one of these, or that gets (worker
            index, number of workers) and returns an iterable over one part; or `Examples` or `Stream` of these.
        *unnamed: Nothing; inputs and targets are one tuple.
        validation_data: Held-out examples likewise, scored after every epoch; with `Examples` and `Stream` they are
            part of `data`. None: nothing is scored.
        validation_sets: Further held-out examples by name, scored as `val_NAME_...`.
        epochs: Passes over the training examples, of all workers together.
        batch_size: Examples in a batch of one worker; None for 32, or those of an item where items are batches.
        workers: Worker processes.
        shards: Parameter-server shards.
        class_weight: Weights of classes, as in Keras' `fit`.
        callbacks: Keras' callbacks that use no event of single batches, or the job's own; see
            `downpour.launch.fitting.callbacks`.
        verbose: What `wait` shows: 0 for nothing, 1 for a bar an epoch, 2 for a line an epoch, `auto` for bars on a
            terminal and in a notebook.
        name: Name of the job; the model's by default.
        run_dir: Folder of the run; `runs/NAME` by default.
        overwrite: Whether an earlier run in that folder is removed.
        resume: Whether it is continued, with these arguments; model and data must be the same.
        dry_run: Whether only the recipe is written; the run that is returned is not started.
        trace: How many steps every worker traces, into `trace.json` of the run (docs/traces.md); 0 for none.
        metrics_port: First of the ports of loopback on which the processes serve Prometheus' `/metrics`
            (docs/metrics.md); 0 for none.
        **job_fields: Other fields of `downpour.launch.job.Job`. The exchange is float32 without overlap by default, as
            plain Keras computes.

    Raises:
        ValueError: Something is refused; nothing has been started.
    """
    if recipes.is_loading():
        raise ValueError('a process of the job imports what calls fit; call it below if __name__ == "__main__":')
    _check_numbers(workers=workers, shards=shards, batch_size=1 if batch_size is None else batch_size)
    check_steps(trace)
    if metrics_port:
        _check_numbers(metrics_port=metrics_port)
    verbosity(verbose)
    called = converted(callbacks)
    _check_names(unnamed, job_fields)
    if data is None:
        raise ValueError("there is no data; give it after the model: fit(model, (x, y))")
    with named_as_given(data):
        examples = data_set(data, validation_data, class_weight)
        of_items = examples.batch_size_of_items()
        examples.check_all()
    if batch_size and of_items and batch_size != of_items:
        raise ValueError(f"batch_size is {batch_size}, and items of the data are batches of {of_items}; leave it out")
    batch_size = batch_size or of_items or 32
    given_model = GivenModel.of(model)
    model = given_model.model
    with named_as_given(data):
        check_classes(model, examples)
    cluster = Cluster(shards, workers, threads_per_worker=max(1, (os.cpu_count() or 1) // workers))
    is_scored = examples.validation is not None or bool(validation_sets)
    if not is_scored:
        check_scores(called.chief, ())
    every_epoch = (is_scored or bool(called.chief or called.here)) and "checkpoint_every_steps" not in job_fields
    more = {"cluster": cluster, "callbacks": called.chief, "checkpoint_every_epoch": every_epoch}
    more |= _scored_sets(examples, validation_sets) | job_fields
    fields = _fields(model, examples, epochs, batch_size, more)
    fields["name"] = name or model.name
    job = Job(model=lambda: model, loss=None, **fields)  # raises for values that do not fit
    folder = (Path(run_dir) if run_dir is not None else Path("runs") / fields["name"]).absolute()
    checkpoints = Checkpoints(resume="yes" if resume else "no", overwrite=overwrite)
    if metrics_port:
        targets.check_free(job, metrics_port, evaluator=is_scored)
    owner.check_free(folder)  # before the files of a run that is going on are replaced
    if not (overwrite or resume):
        owner.check_new_run(folder, Folder(checkpoints.of(folder)))
    if resume:
        given_model = _resuming(given_model, job, folder, checkpoints, is_named=bool(run_dir or name))
    with named_as_given(data):
        recipe = _write(given_model, fields, folder / _JOB)
    again = "downpour.fit(..., resume=True)"
    config = RunConfig(
        recipe,
        run_dir=folder,
        evaluator=is_scored,
        checkpoints=checkpoints,
        trace_steps=trace,
        metrics_port=metrics_port,
        how_to_resume=again,
    )
    run = FitRun(config, model, called, verbose, given_model.copy(folder / _JOB / _MODEL))
    return run if dry_run else run.start()


def _check_numbers(**given: Any) -> None:
    for what, number in given.items():
        if isinstance(number, bool) or not isinstance(number, int | np.integer) or number < 1:
            raise ValueError(f"{what} is {number!r}; give a whole number of at least 1")


def _check_names(unnamed: tuple[Any, ...], job_fields: Mapping[str, Any]) -> None:
    """Raises for what is neither an argument of `fit` nor a field of the job that it may set."""
    if unnamed:
        raise ValueError(f"fit gets {2 + len(unnamed)} arguments without a name; {_ONE_TUPLE}")
    of_job = {field.name for field in dataclasses.fields(Job)}
    if unknown := set(job_fields) - (of_job - {"model", "loss", "validation_sets"}):
        for name in sorted(unknown & _OF_KERAS.keys()):
            raise ValueError(f"{name} cannot be given; {_OF_KERAS[name]}")
        accepted = {*inspect.signature(fit).parameters, *of_job} - {"job_fields", "unnamed", "loss"}
        nearest = did_you_mean(min(unknown), sorted(accepted))
        raise ValueError(f"{', '.join(sorted(unknown))} cannot be given; other fields of Job can{nearest}")


def _fields(
    model: keras.Model, examples: Examples | Stream, epochs: float, batch_size: int, given: Mapping[str, Any]
) -> dict[str, Any]:
    """Returns the fields of the job: those given, what the model says, and defaults."""
    from downpour.launch.job.compiled import from_compiled

    fields = from_compiled(model).job_fields()
    cadence, pace = ({**fields, **given}.get(name) for name in ("cadence", "pace"))
    per_epoch = given.get("steps_per_epoch", 0)
    steps = given.get("num_steps") or steps_of(epochs, examples, batch_size, cadence, pace, per_epoch)
    a_pass = steps if examples.num_records >= ENDLESS else steps_of(1, examples, batch_size, cadence, pace)
    steps_per_epoch = per_epoch or min(steps, a_pass)
    return {
        **fields,
        "data": examples,
        "num_steps": steps,
        "batch_size": batch_size,
        "exchange": _EXACT,
        "checkpoint_every_steps": steps if given["checkpoint_every_epoch"] else steps_per_epoch,
        **given,
    }


def _scored_sets(examples: Examples | Stream, given: Mapping[str, Any] | None) -> dict[str, Any]:
    """Returns the field `validation_sets` of the job, if there is any."""
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        raise ValueError(f"validation_sets is a {type(given).__name__}; give a dict of held-out examples by name")
    found = {}
    for name, source in given.items():
        one = dataclasses.replace(examples, validation=source, class_weight=None)
        try:
            one.check()
        except ValueError as error:
            raise ValueError(f"validation_sets[{name!r}]: {error}") from None
        # Nobody trains on it: the training examples need not be written again.
        found[name] = dataclasses.replace(one, train=source) if isinstance(one, Examples) else one
    return {"validation_sets": found}


def _resuming(model: GivenModel, job: Job, folder: Path, checkpoints: Checkpoints, *, is_named: bool) -> GivenModel:
    """Returns the model under the names of the run in a folder; `is_named` says whether its name was given to `fit`.

    Raises:
        ValueError: There is no such run, or it has more epochs than the job.
    """
    name = model.model.name
    if not (is_named or folder.exists()) and has_automatic_name(model.model):
        raise ValueError(
            f"resume=True, and there is no {folder}: Keras has numbered this model, {name!r}; give run_dir, the folder "
            "of the run that is to be continued"
        )
    earlier = checkpoint.newest(Folder(checkpoints.of(folder)), check=lambda saved: None)
    if earlier is None:
        return model
    epochs = epochs_of(job)
    asked, done = epochs.of(job.num_steps - 1) + 1, epochs.of(earlier.step)
    if done > asked:
        raise ValueError(
            f"epochs is {asked}, and the run in {folder} has {done} already; epochs counts from its begin, so give "
            "more of them, or overwrite=True to begin anew"
        )
    return model.resuming(earlier.layout)


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
    folders = [Path(sys.path[0]).absolute()]
    if not hasattr(sys.modules["__main__"], "__file__"):  # a notebook or a prompt
        folders.append(Path.cwd())
    text = "\n".join(
        [
            '"""A job that `downpour.fit` has written; every process of it loads this file."""',
            "",
            "import sys",
            "",
            f"sys.path += {[str(folder) for folder in dict.fromkeys(folders)]}  # of what called fit",
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
