"""Starts a job on its shards, watches it, checkpoints it and ends it. Never computes.

python -m downpour.launch.chief --recipe=quickstart --ps=HOST:PORT,... --port=2223 --run_dir=runs/quickstart
"""

from __future__ import annotations

from absl import logging

from downpour.launch import entry, recipe, topology
from downpour.launch.build import build
from downpour.launch.job import Job
from downpour.ps.layout import Layout
from downpour.worker.chief import Chief, Plan

topology.define_flags("chief")


def main() -> None:
    """Carries the job through."""
    entry.run(_run, role="chief")


def _run() -> None:
    job = recipe.from_flags()
    where, index = topology.from_flags("chief", job)
    job.data.check()
    model, layout = build(job)

    from downpour.worker.step import initial_values

    host, port = topology.listen_address("chief", where, index)
    chief = Chief(
        _plan(job, layout),
        where.ps,
        topology.run_dir(job),
        host=host,
        port=port,
        give_up_after_s=job.exchange.give_up_after_s,
    )
    try:
        topology.write_port(chief.port)
        chief.run(lambda: initial_values(model))
    finally:
        chief.close()
    logging.info("done")


def _plan(job: Job, layout: Layout) -> Plan:
    return Plan(
        recipe=job.name,
        layout=layout,
        rule=job.rule,
        schedule=job.schedule,
        num_steps=job.num_steps,
        checkpoint_every_steps=job.checkpoint_every_steps,
        max_train_s=job.max_train_s,
        facts={
            "num_workers": job.cluster.num_workers,
            "head_slices": job.slicing[0].num_slices if job.slicing else 1,
            "batch_size": job.batch_size,
            "codec": job.exchange.codec,
            "parameters": sum(v.size for v in layout.variables),
            "imbalance": round(layout.imbalance, 5),
        },
    )


if __name__ == "__main__":
    main()
