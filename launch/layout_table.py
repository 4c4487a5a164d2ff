"""`downpour layout --recipe=NAME`: where a recipe's parameters are placed, as a table.

Builds the model to learn its variables, so it imports TensorFlow, when it runs.
"""

from __future__ import annotations

from downpour.launch import entry, recipe, topology
from downpour.launch.job import Job

topology.define_recipe_flags()


def table(job: Job) -> str:
    """The layout table of a job."""
    from downpour.ps.layout import plan
    from downpour.worker.step import variables_of

    model = job.model.build(job.data.image_size, job.data.num_labels)
    return plan(variables_of(model, job.weight_decay, job.undecayed), job.cluster.num_ps, job.slicing).table()


def main() -> None:
    """Prints the table."""
    entry.run(lambda: print(table(recipe.from_flags())), role="layout")


if __name__ == "__main__":
    main()
