"""The configuration of a run on this machine, and what is refused before a process of it starts. No TensorFlow."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from downpour.launch.job import Job, keras_settings, recipe
from downpour.launch.job.build import check_data
from downpour.launch.local import targets
from downpour.launch.local.scratch import find_kept
from downpour.launch.roles import initial
from downpour.launch.roles.config import Checkpoints
from downpour.proto import spans
from downpour.ps.checkpoint import manifest as checkpoint
from downpour.ps.checkpoint.storage import Folder
from downpour.worker.chief import owner


@dataclass(frozen=True)
class RunConfig:
    """What to run on this machine, and where.

    Attributes:
        recipe: Name of a recipe, or path of its .py file; every process of the run loads it.
        overrides: Overrides of the recipe, each `key=value`.
        run_dir: Folder for logs, checkpoints and results; None for `runs/NAME` of the recipe.
        evaluator: Whether an evaluator is started.
        arena_parent: Parent of the folder for the shards' memory; None to choose.
        checkpoints: Where checkpoints go, whether the run continues from one or replaces an earlier run.
        init_from: Where initial values are read: a Keras file, a checkpoint or a run's folder; "" for fresh ones.
        init_only: Name patterns of the variables that are read; none for all.
        trace_steps: How many steps every worker traces, into `trace.json` of the run; 0 for none.
        print_layout: Whether the layout is printed to stdout; None: if the job is `paper_shape`.
        verbosity: `--verbosity` of the process that checks the job; None for its default.
        metrics_port: First of the ports of loopback on which the processes serve Prometheus' `/metrics`; 0 for none.
        page_port: Port on loopback of the page for browsers, 0 for any; None for no page.
        log_format: `--log_format` of every process, and of what the launcher writes to stderr: "text" or "json".
        how_to_resume: How the caller continues an interrupted run, for the last message of it.
    """

    recipe: str | Path
    overrides: tuple[str, ...] = ()
    run_dir: Path | None = None
    evaluator: bool = True
    arena_parent: Path | None = None
    checkpoints: Checkpoints = field(default_factory=Checkpoints)
    init_from: str = ""
    init_only: tuple[str, ...] = ()
    trace_steps: int = 0
    print_layout: bool | None = None
    verbosity: int | None = None
    metrics_port: int = 0
    page_port: int | None = None
    log_format: str = "text"
    how_to_resume: str = 'the same configuration with checkpoints=Checkpoints(resume="yes")'

    @cached_property
    def job(self) -> Job:
        """The job of the recipe with the overrides.

        Raises:
            ValueError: There is no such recipe, or it or an override is refused.
        """
        return recipe.load(self.recipe, self.overrides)

    @property
    def folder(self) -> Path:
        """Folder of the run."""
        return self.run_dir or Path("runs") / self.job.name

    @property
    def source(self) -> initial.Source | None:
        """Source of the initial values; None for fresh ones.

        Raises:
            ValueError: It contradicts other settings.
        """
        return initial.source_of(self.init_from, self.init_only, self.folder, self.checkpoints.resume)

    @property
    def shows_layout(self) -> bool:
        """Whether the layout is printed."""
        return self.job.name == "paper_shape" if self.print_layout is None else self.print_layout


def check(config: RunConfig) -> None:
    """Raises `ValueError` for mistakes that can be found before a process starts; makes the folder of the run."""
    job, run_dir, source, resume = config.job, config.folder, config.source, config.checkpoints.resume
    if config.arena_parent is not None and not os.access(config.arena_parent, os.W_OK | os.X_OK):
        raise ValueError(f"folder {config.arena_parent} is missing or not writable; give another --arena_parent")
    spans.check_steps(config.trace_steps)
    if config.page_port:
        targets.check_page(config.page_port)
    if config.metrics_port:
        targets.check_free(job, config.metrics_port, evaluator=config.evaluator)
    keras_settings.check()
    check_data(job)
    if source:
        initial.check(source)
    owner.check_free(run_dir)
    checkpoints = Folder(config.checkpoints.of(run_dir))
    kept = find_kept(config.arena_parent, run_dir) if resume != "no" else None
    if kept:
        _check_kept(kept, job.cluster.num_ps)
    elif resume == "yes":
        checkpoint.to_resume(checkpoints)
    elif resume == "no" and not config.checkpoints.overwrite:
        owner.check_new_run(run_dir, checkpoints)
    try:
        (run_dir / "logs").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"run folder {run_dir}: {error.strerror}; give another --run_dir") from None
    if not os.access(run_dir, os.W_OK):
        raise ValueError(f"run folder {run_dir} is not writable; give another --run_dir")
    for sink in job.sinks:
        sink.check(run_dir)
    checkpoints.check()


def _check_kept(kept: Path, num_ps: int) -> None:
    count = len(list(kept.glob("shard-*.arena")))
    if count != num_ps:
        raise ValueError(
            f"{kept} is the memory of {count} shards, with steps that are in no checkpoint, and this run has {num_ps}; "
            f"continue with --set=cluster.num_ps={count} first, or remove that folder to start from the last one"
        )
