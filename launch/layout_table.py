"""Prints where a recipe's parameters are placed, as a table, and its variables by name, shape, kind and shards.

    downpour layout quickstart --set=cluster.num_ps=4

Builds the model to get its variables, so it imports TensorFlow when it runs. With --preflight it is the process that
launchers run before all others: it checks the whole job (`downpour.launch.local.preflight`).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from absl import flags

from downpour.launch.job import Job, recipe, recipe_flags
from downpour.launch.job.build import build
from downpour.launch.local import prepared
from downpour.launch.roles import entry, initial, role_flags
from downpour.launch.roles.command_line import Syntax
from downpour.ps.layout import Layout

SYNTAX = Syntax("recipe set variables out preflight", positional="recipe")
_MOST_LISTED = 100


@dataclass(frozen=True)
class LayoutConfig:
    """What to print or check.

    Attributes:
        job: The job.
        out: File to write the table to; None for stdout.
        variables: Whether every variable is listed; None: if there are at most 100, and on stdout only.
        preflight: Whether the job is checked as before a start.
        evaluator: Whether `preflight` also checks what an evaluator needs.
        prepared_out: File for layout and initial values, written by `preflight`; None for none.
    """

    job: Job
    out: Path | None = None
    variables: bool | None = None
    preflight: bool = False
    evaluator: bool = True
    prepared_out: Path | None = None


def variables(layout: Layout) -> str:
    """Lists every variable: name (which patterns, `frozen` and `--init_only` match), shape, kind and shards."""
    rows = [("variable", "shape", "kind", "shards")]
    for number, variable in enumerate(layout.variables):
        shards = sorted({shard for shard, ranges in enumerate(layout.by_shard) for r in ranges if r.variable == number})
        shape = " x ".join(map(str, variable.shape)) or "one number"
        rows.append((variable.name, shape, str(variable.kind), _numbers(shards)))
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    return "\n".join("  ".join([*map(str.ljust, row, widths), row[3]]) for row in rows)


def _numbers(shards: list[int]) -> str:
    """Formats shard numbers: `0-16` if they are consecutive, else `0,3,7`."""
    if len(shards) > 2 and shards == list(range(shards[0], shards[-1] + 1)):
        return f"{shards[0]}-{shards[-1]}"
    return ",".join(map(str, shards))


def main() -> None:
    """Prints the table."""
    define()
    entry.run(lambda: run(from_flags()), role="layout", syntax=SYNTAX)


def define() -> None:
    """Defines the flags."""
    recipe_flags.define()
    flags.DEFINE_string("out", None, "File to write the table to instead of stdout.")
    text = "Whether to list every variable; by default up to 100 of them are listed."
    flags.DEFINE_boolean("variables", None, text)
    text = "Check the job as before a start: trace its step, read a batch."
    flags.DEFINE_boolean("preflight", False, text)
    flags.DEFINE_string("prepared_out", None, "File for the chief's --prepared, written by --preflight.")
    role_flags.define_evaluator("Whether --preflight also checks what an evaluator needs.")


def from_flags() -> LayoutConfig:
    """Returns the configuration of the command line."""
    values = flags.FLAGS.flag_values_dict()
    return LayoutConfig(
        recipe.load(*recipe_flags.read()),
        out=Path(values["out"]) if values["out"] else None,
        variables=values["variables"],
        preflight=bool(values["preflight"]),
        evaluator=bool(values["evaluator"]),
        prepared_out=Path(values["prepared_out"]) if values["prepared_out"] else None,
    )


def run(config: LayoutConfig) -> None:
    """Prints or writes the table, after the preflight if that is asked for."""
    job = config.job
    if config.preflight:
        from downpour.launch.local import preflight

        model, layout = preflight.check(job, evaluator=config.evaluator)
        if config.prepared_out:
            prepared.write(config.prepared_out, layout, initial.values(model, layout, None, job.exchange.codec))
    else:
        layout = build(job)[1]
    text = layout.table()
    few = not config.out and len(layout.variables) <= _MOST_LISTED
    if few if config.variables is None else config.variables:
        text = f"{text}\n\n{variables(layout)}"
    if config.out:
        config.out.write_text(text + "\n")
    else:
        print(text)


if __name__ == "__main__":
    main()
