"""Starts a job on its shards, monitors it, checkpoints it and ends it. Never computes.

    downpour chief --recipe=mine.py --ps=A:2222,B:2222 --port=2223

A restarted chief continues from the state of the shards and its journal in --run_dir. It is refused by shards that hold
another job's parameters, and while another chief owns the folder (`downpour.worker.chief.owner`). If the shards are
empty, --resume (or --resume_if_any) continues from the newest checkpoint. Otherwise a new run begins; a folder that
already holds a run then needs --overwrite, which removes it. A run has an id, recorded in its folder, its shards and
its checkpoints. A chief that is restarted with the same --job_id and finds empty shards continues that run, whatever
its other flags; without --job_id, so does a chief with --overwrite whose run has not ended.

At SIGTERM it updates its journal and ends with 143. With `--stop_shards` it ends the shards when the job has succeeded
or failed; at SIGTERM it then first writes the checkpoint of shards that are terminated at the same time.
"""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from absl import logging

from downpour import files
from downpour.launch.job import Job, mistakes, recipe, recipe_flags
from downpour.launch.job.build import build, check_data
from downpour.launch.job.epochs import epochs_of
from downpour.launch.job.same_job import same_fields
from downpour.launch.local import prepared
from downpour.launch.observe import otel, report, trainer_status
from downpour.launch.observe.metrics.chief import metrics_of_chief
from downpour.launch.observe.page import ADDRESS_FILE
from downpour.launch.observe.page.server import PageServer
from downpour.launch.observe.trainer_status import StatusServer
from downpour.launch.roles import ending, entry, initial, metrics, role_flags, security, topology
from downpour.launch.roles.command_line import Syntax
from downpour.launch.roles.config import Access, Checkpoints, Listening
from downpour.launch.roles.topology import Topology
from downpour.model.data.batches import positions_in_batch
from downpour.proto.errors import DownpourError
from downpour.ps.layout import Layout
from downpour.worker.chief import owner
from downpour.worker.chief.callbacks import check_scores
from downpour.worker.chief.chief import Chief
from downpour.worker.chief.leases import lease_records
from downpour.worker.chief.progress import as_json
from downpour.worker.chief.settings import JobSettings

if TYPE_CHECKING:
    from downpour.launch.observe.metrics.scrape import Scrape

SYNTAX = Syntax(
    shown="recipe set ps host port run_dir checkpoint_dir resume overwrite init_from evaluator "
    "trace page_port tls token_file metrics_port log_format "
    "listen_in_plain_text_on_the_network",
)
_SEE_OFF_WITHIN_S = 20.0  # as a shard's --grace_s


@dataclass(frozen=True)
class ChiefConfig:
    """Configuration of the chief.

    Attributes:
        job: The job.
        topology: The cluster.
        run_dir: Folder of the run.
        recipe_overrides: Overrides that the job was made with, for the description of the run.
        listening: Where it listens.
        checkpoints: Where checkpoints go, and whether the run continues from one.
        source: Source of initial values; None for fresh ones.
        prepared: File of layout and initial values, written by a launcher; None to build the model.
        job_id: Id of a new run; "" for a random one.
        stop_shards: Whether the shards are ended when the job is over.
        trace_steps: How many steps every worker traces, into `trace.json` of the run.
        page: Where the page for browsers is served; None for nowhere.
        access: Identity, access, health port and metrics port.
        status_server: Where Kubeflow Trainer takes the job's progress; None for nowhere.
    """

    job: Job
    topology: Topology
    run_dir: Path
    recipe_overrides: tuple[str, ...] = ()
    listening: Listening = field(default_factory=Listening)
    checkpoints: Checkpoints = field(default_factory=Checkpoints)
    source: initial.Source | None = None
    prepared: Path | None = None
    job_id: str = ""
    stop_shards: bool = False
    trace_steps: int = 0
    page: Listening | None = None
    access: Access = field(default_factory=Access)
    status_server: StatusServer | None = None


def main() -> None:
    """Runs the job to its end."""
    define()
    entry.run(_main, role="chief", syntax=SYNTAX)


def define() -> None:
    """Defines the flags."""
    recipe_flags.define()
    role_flags.define("chief")


def _main() -> None:
    ending.on_sigterm()
    run(from_flags())


def from_flags() -> ChiefConfig:
    """Returns the configuration of the command line."""
    name, overrides = recipe_flags.read()
    job = recipe.load(name, overrides)
    where, index = role_flags.cluster("chief", job)
    run_dir, checkpoints, prepared = role_flags.run_dir(job), role_flags.checkpoints(), role_flags.value("prepared")
    path, only = role_flags.value("init_from"), role_flags.value("init_only") or ()
    return ChiefConfig(
        job,
        where,
        run_dir,
        recipe_overrides=overrides,
        listening=role_flags.listening("chief", where, index),
        checkpoints=checkpoints,
        source=initial.source_of(path, only, run_dir, checkpoints.resume),
        prepared=Path(prepared) if prepared else None,
        job_id=role_flags.job_id(),
        stop_shards=bool(role_flags.value("stop_shards")),
        trace_steps=role_flags.trace_steps(),
        page=role_flags.page(),
        access=role_flags.access("chief"),
        status_server=trainer_status.server_of(os.environ),
    )


def run(config: ChiefConfig) -> None:
    """Runs the job to its end; called from the main thread of a process of its own."""
    job, shards, source = config.job, config.topology.ps, config.source
    if not config.topology.evaluator:
        check_scores(job.callbacks, ())
    if config.prepared is None:  # else the preflight has checked them
        check_data(job)
    security.prepare_server()
    host, port = config.listening.host, config.listening.port
    chief = Chief(_plan(config), config.run_dir, host=host, port=port, security=config.access.security)
    health = security.health(config.access.health_port, lambda: chief.ready)
    observed = metrics.serve(config.access, _metrics(config, chief))
    has_time_limit = math.isfinite(job.max_train_s)
    reporting = trainer_status.reporting(config.status_server, chief.progress, has_time_limit=has_time_limit)
    page = _page(config, chief)
    with contextlib.closing(chief), _recorded_failure(config.run_dir), health, observed, reporting, page:
        ending.on_sigterm(lambda: _leave(chief, config.stop_shards))
        # Before the model is built, which takes seconds: workers and evaluator build theirs meanwhile.
        topology.write_port(config.listening.port_file, chief.port)
        if source:
            logging.info(
                "empty shards take their initial values from %s; shards that hold parameters keep them", source.path
            )
        model = _Model(job, source, config.prepared)
        # A restarted chief needs no model, so that it is ready within a second.
        layout = chief.known_layout(shards) or model.layout()
        give_up_after_s = job.exchange.give_up_after_s
        found = chief.run(layout, shards, model.initial_values, give_up_after_s, stop_shards=config.stop_shards)
    entry.conclude("done: %d steps, loss %.4g, ended by %s", found["global_steps"], found["loss"], found["ended_by"])


def _metrics(config: ChiefConfig, chief: Chief) -> Callable[[Scrape], None]:
    checkpoints = config.checkpoints.of(config.run_dir)
    folders = {"run": config.run_dir} | ({} if "://" in checkpoints else {"checkpoints": Path(checkpoints)})
    return metrics_of_chief(chief.progress, chief.server.gate, chief.server.times, folders)


@contextlib.contextmanager
def _page(config: ChiefConfig, chief: Chief) -> Iterator[None]:
    """Serves the page, if one is wanted; its address is in the folder of the run meanwhile."""
    if config.page is None:
        yield
        return
    address, history = config.run_dir / ADDRESS_FILE, config.run_dir / report.HISTORY_FILE

    def status() -> dict[str, Any]:
        return as_json(chief.progress()) | {"summary": chief.summary}

    server = PageServer(config.page.host, config.page.port, status, history, config.access.security)
    with contextlib.closing(server):
        logging.info("page %s", server.url)
        with contextlib.suppress(OSError):  # the disk may be full; the address is for people only
            files.write(address, f"{server.url}\n")
        yield
    with contextlib.suppress(OSError):
        address.unlink(missing_ok=True)


@contextlib.contextmanager
def _recorded_failure(run_dir: Path) -> Iterator[None]:
    """Records in the folder of the run what this chief is refused or fails with."""
    owner.write_failure(run_dir, "")
    try:
        yield
    except (ValueError, DownpourError) as error:
        owner.write_failure(run_dir, mistakes.describe(error))
        raise


def _leave(chief: Chief, stop_shards: bool) -> None:
    if stop_shards:
        chief.see_off(_SEE_OFF_WITHIN_S)
    chief.hold()
    entry.conclude("stopping at SIGTERM; the journal is written")
    ending.end_now()


class _Model:
    """The job's model, built on first use; a preflight's layout and values in the file `prepared` replace it."""

    def __init__(self, job: Job, source: initial.Source | None, prepared: Path | None) -> None:
        self._job, self._source = job, source
        self._prepared = prepared if source is None else None

    def layout(self) -> Layout:
        """Returns the layout of its variables."""
        return prepared.read_layout(self._prepared) if self._prepared else self._built[1]

    @cached_property
    def _built(self) -> tuple[Any, Layout]:
        """The Keras model and its layout."""
        return build(self._job)

    def initial_values(self) -> list[np.ndarray]:
        """Returns one array per variable."""
        frozen: Any = getattr(self._job.model, "frozen", ())
        if frozen and self._source is None:
            logging.warning("model.frozen without --init_from: frozen layers keep random values; give a checkpoint")
        if self._prepared:
            return prepared.read_values(self._prepared)
        model, layout = self._built
        return initial.values(model, layout, self._source, self._job.exchange.codec)


def _plan(config: ChiefConfig) -> JobSettings:
    job, checkpoints = config.job, config.checkpoints
    same = same_fields(job)
    return JobSettings(
        recipe=job.name,
        rule=job.rule,
        schedule=job.schedule,
        pace=job.pace,
        treatment=job.treatment,
        num_workers=job.cluster.num_workers,
        max_workers=job.cluster.most_workers,
        expects_evaluator=config.topology.evaluator,
        num_evaluators=job.cluster.num_evaluators,
        lease_s=job.cluster.lease_s,
        num_steps=job.num_steps,
        checkpoint_every_steps=job.checkpoint_every_steps,
        checkpoint_every_epoch=job.checkpoint_every_epoch,
        chooses_overlap=job.overlap is None,
        trace_steps=config.trace_steps,
        epochs=epochs_of(job),
        max_train_s=job.max_train_s,
        num_records=job.data.num_records,
        lease_records=lease_records(
            job.data.num_records, positions_in_batch(job.data, job.batch_size), job.cluster.num_workers
        ),
        average=job.average,
        checkpoint_dir=checkpoints.of(config.run_dir),
        keep_checkpoints=job.keep_checkpoints,
        keep_every_steps=job.keep_every_steps,
        callbacks=job.callbacks,
        sinks=(*job.sinks, *otel.sinks()),
        resume=checkpoints.resume,
        overwrite=checkpoints.overwrite,
        job_id=config.job_id,
        job=same,
        description={"recipe": job.name, "overrides": list(config.recipe_overrides), "job": same},
        facts={
            "head_slices": job.slicing[0].num_slices if job.slicing else 1,
            "batch_size": job.batch_size,
            "codec": job.exchange.codec,
        },
    )


if __name__ == "__main__":
    main()
