"""`downpour layout --recipe=NAME`: where a recipe's parameters are placed, as a table, and its variables by name.

Builds the model to get its variables, so it imports TensorFlow when it runs. With --preflight it is the process that
launchers run before all others: it checks the whole job (`downpour.launch.local.preflight`).
"""

from __future__ import annotations

from pathlib import Path

from absl import flags

from downpour.launch.job import recipe
from downpour.launch.job.build import build
from downpour.launch.local import prepared
from downpour.launch.roles import entry, initial, topology
from downpour.ps.layout import Layout

topology.define_recipe_flags()
_OUT = flags.DEFINE_string("out", None, "File to write the table to instead of stdout.")
_VARIABLES = flags.DEFINE_boolean(
    "variables", None, "Whether to list every variable; by default up to 100 of them are listed."
)
_PREFLIGHT = flags.DEFINE_boolean("preflight", False, "Check the job as before a start: trace its step, read a batch.")
_PREPARED_OUT = flags.DEFINE_string("prepared_out", None, "File for the chief's --prepared, written by --preflight.")
if "evaluator" not in flags.FLAGS:
    flags.DEFINE_boolean("evaluator", True, "Whether --preflight also checks what an evaluator needs.")

_MOST_LISTED = 100


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
    entry.run(_run, role="layout")


def _run() -> None:
    job = recipe.from_flags()
    if _PREFLIGHT.value:
        from downpour.launch.local import preflight

        model, layout = preflight.check(job, evaluator=bool(flags.FLAGS["evaluator"].value))
        if _PREPARED_OUT.value:
            prepared.write(Path(_PREPARED_OUT.value), layout, initial.values(model, layout, None, job.exchange.codec))
    else:
        layout = build(job)[1]
    text = layout.table()
    if _VARIABLES.value or (_VARIABLES.value is None and not _OUT.value and len(layout.variables) <= _MOST_LISTED):
        text = f"{text}\n\n{variables(layout)}"
    if _OUT.value:
        Path(_OUT.value).write_text(text + "\n")
    else:
        print(text)


if __name__ == "__main__":
    main()
