"""`downpour layout --recipe=NAME`: where a recipe's parameters are placed, as a table.

Builds the model to learn its variables, so it imports TensorFlow, when it runs.
"""

from __future__ import annotations

from pathlib import Path

from absl import flags

from downpour.launch import entry, recipe, topology
from downpour.launch.build import build
from downpour.launch.job import Job

topology.define_recipe_flags()
_OUT = flags.DEFINE_string("out", None, "File to write the table to instead of stdout.")


def table(job: Job) -> str:
    """The layout table of a job."""
    return build(job)[1].table()


def main() -> None:
    """Prints the table."""
    entry.run(_run, role="layout")


def _run() -> None:
    text = table(recipe.from_flags())
    if _OUT.value:
        Path(_OUT.value).write_text(text + "\n")
    else:
        print(text)


if __name__ == "__main__":
    main()
