"""Starts a job on its shards, watches it, checkpoints it and ends it. Never computes.

python -m downpour.launch.chief --recipe=quickstart --ps=HOST:PORT,... --port=2223 --run_dir=runs/quickstart
"""

from __future__ import annotations

from absl import logging

from downpour.launch import entry, initial, recipe, topology
from downpour.launch.build import build
from downpour.launch.job import Job
from downpour.worker.chief import Chief, Plan
from downpour.worker.leases import lease_records

topology.define_flags("chief")
initial.define_flags()


def main() -> None:
    """Carries the job through."""
    entry.run(_run, role="chief")


def _run() -> None:
    job = recipe.from_flags()
    where, index = topology.from_flags("chief", job)
    job.data.check()
    host, port = topology.listen_address("chief", where, index)
    run_dir = topology.run_dir(job)
    source = initial.from_flags(run_dir)
    chief = Chief(_plan(job), run_dir, host=host, port=port)
    try:
        # Before the model, which takes seconds: workers and evaluator build theirs meanwhile.
        topology.write_port(chief.port)
        model, layout = build(job)
        if source:
            logging.info("empty shards begin as in %s; shards that hold parameters keep them", source.path)
        chief.run(layout, where.ps, lambda: initial.values(model, layout, source), job.exchange.give_up_after_s)
    finally:
        chief.close()
    logging.info("done")


def _plan(job: Job) -> Plan:
    return Plan(
        recipe=job.name,
        rule=job.rule,
        schedule=job.schedule,
        pace=job.pace,
        staleness=job.staleness,
        num_workers=job.cluster.num_workers,
        lease_s=job.cluster.lease_s,
        num_steps=job.num_steps,
        checkpoint_every_steps=job.checkpoint_every_steps,
        max_train_s=job.max_train_s,
        num_records=job.data.num_records,
        lease_records=lease_records(job.data.num_records, job.batch_size, job.cluster.num_workers),
        average=job.average,
        facts={
            "head_slices": job.slicing[0].num_slices if job.slicing else 1,
            "batch_size": job.batch_size,
            "codec": job.exchange.codec,
        },
    )


if __name__ == "__main__":
    main()
