"""Starts a job on its shards, monitors it, checkpoints it and ends it. Never computes.

python -m downpour.launch.chief --recipe=quickstart --ps=HOST:PORT,... --port=2223 --run_dir=runs/quickstart

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
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags, logging

from downpour.launch.job import Job, recipe
from downpour.launch.job.build import build, check_data
from downpour.launch.job.same_job import same_fields
from downpour.launch.local import prepared
from downpour.launch.roles import ending, entry, initial, security, topology
from downpour.ps.layout import Layout
from downpour.worker.chief.chief import Chief
from downpour.worker.chief.leases import lease_records
from downpour.worker.chief.plan import Plan

topology.define_flags("chief")
initial.define_flags()
_PREPARED = flags.DEFINE_string("prepared", None, "File of layout and initial values that a launcher has written.")

_SEE_OFF_WITHIN_S = 20.0  # as a shard's --grace_s


def main() -> None:
    """Runs the job to its end."""
    entry.run(_run, role="chief")


def _run() -> None:
    ending.on_sigterm()
    job = recipe.from_flags()
    where, index = topology.from_flags("chief", job)
    check_data(job)
    host, port = topology.listen_address("chief", where, index)
    run_dir = topology.run_dir(job)
    source = initial.from_flags(run_dir)
    security.prepare_server()
    chief = Chief(_plan(job, where.evaluator), run_dir, host=host, port=port, security=security.from_flags("chief"))
    with contextlib.closing(chief), security.health(lambda: chief.ready):
        ending.on_sigterm(lambda: _leave(chief))
        # Before the model is built, which takes seconds: workers and evaluator build theirs meanwhile.
        topology.write_port(chief.port)
        if source:
            logging.info("empty shards begin as in %s; shards that hold parameters keep them", source.path)
        model = _Model(job, source)
        # A restarted chief needs no model, so that it is ready within a second.
        layout = chief.known_layout(where.ps) or model.layout()
        give_up_after_s, stop = job.exchange.give_up_after_s, bool(flags.FLAGS["stop_shards"].value)
        chief.run(layout, where.ps, model.initial_values, give_up_after_s, stop_shards=stop)
    logging.info("done")


def _leave(chief: Chief) -> None:
    if flags.FLAGS["stop_shards"].value:
        chief.see_off(_SEE_OFF_WITHIN_S)
    chief.hold()
    logging.info("told to end; the journal is written")
    ending.end_now()


class _Model:
    """The job's model, built on first use; a preflight's layout and values in `--prepared` replace it."""

    def __init__(self, job: Job, source: initial.Source | None) -> None:
        self._job, self._source = job, source
        self._prepared = Path(_PREPARED.value) if _PREPARED.value and source is None else None

    def layout(self) -> Layout:
        """Returns the layout of its variables."""
        return prepared.read_layout(self._prepared) if self._prepared else self._built[1]

    @cached_property
    def _built(self) -> tuple[Any, Layout]:
        """The Keras model and its layout."""
        return build(self._job)

    def initial_values(self) -> list[np.ndarray]:
        """Returns one array per variable."""
        if self._prepared:
            return prepared.read_values(self._prepared)
        model, layout = self._built
        return initial.values(model, layout, self._source, self._job.exchange.codec)


def _plan(job: Job, evaluator: bool) -> Plan:
    same = same_fields(job)
    return Plan(
        recipe=job.name,
        rule=job.rule,
        schedule=job.schedule,
        pace=job.pace,
        staleness=job.staleness,
        num_workers=job.cluster.num_workers,
        max_workers=job.cluster.most_workers,
        expects_evaluator=evaluator,
        lease_s=job.cluster.lease_s,
        num_steps=job.num_steps,
        checkpoint_every_steps=job.checkpoint_every_steps,
        max_train_s=job.max_train_s,
        num_records=job.data.num_records,
        lease_records=lease_records(job.data.num_records, job.batch_size, job.cluster.num_workers),
        average=job.average,
        checkpoint_dir=topology.checkpoint_dir(topology.run_dir(job)),
        keep_checkpoints=job.keep_checkpoints,
        keep_every_steps=job.keep_every_steps,
        resume=topology.resume(),
        overwrite=topology.overwrite(),
        job_id=topology.job_id(),
        job=same,
        description={"recipe": job.name, "overrides": list(flags.FLAGS["set"].value or ()), "job": same},
        facts={
            "head_slices": job.slicing[0].num_slices if job.slicing else 1,
            "batch_size": job.batch_size,
            "codec": job.exchange.codec,
        },
    )


if __name__ == "__main__":
    main()
