"""Trains on this machine: shards, chief, workers and evaluator are processes, as in production.

    downpour train mine.py --epochs=3 --set=cluster.num_workers=4
    downpour train quickstart --run_dir=runs/mine --resume

A folder that already holds a run is refused unless `--resume` continues that run or `--overwrite` removes it. A folder
in which another job is running is refused.

Order: the job is checked before any role starts: first recipe, data and run folder, then in a separate process the
model, the loss and a batch of the data (`downpour.launch.local.preflight`), while the shards' kernels are compiled.
Shards, chief, workers and evaluator start; crashed processes are restarted, a shard or chief at its old port. When the
chief is done, the others end. The run's folder gets `logs/`, `summary.json` and `learning_curve.png`; the last line on
stdout is `RESULT {json}`. At Ctrl-C or SIGTERM the chief writes a checkpoint, then every process ends, and the last
line has the command to continue; a second signal ends them at once. If the last steps cannot be written to a
checkpoint, the shards' memory is kept, and `--resume` continues from it.

Does not import TensorFlow.
"""

from __future__ import annotations

import json
import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from downpour.launch.job import recipe_flags
from downpour.launch.local import signals
from downpour.launch.local.config import RunConfig
from downpour.launch.local.local_run import LocalRun
from downpour.launch.local.supervisor import ProcessFailed, Stopped
from downpour.launch.observe import report
from downpour.launch.roles import entry, role_flags
from downpour.launch.roles.command_line import Syntax

_FULL_BYTES = 1 << 20  # with less free space a disk counts as full
_CONTRADICT_WITH_VALUE = ("init_from", "init_only")  # flags that --resume contradicts
_CONTRADICT = (*_CONTRADICT_WITH_VALUE, "resume", "noresume", "resume_if_any", "noresume_if_any", "overwrite")


SYNTAX = Syntax(
    shown="recipe set epochs steps batch_size run_dir resume overwrite evaluator checkpoint_dir init_from init_only "
    "page_port trace log_format",
    positional="recipe",
)


def main() -> None:
    """Runs the recipe of the flags."""
    define()
    entry.run(lambda: run(from_flags(sys.argv)), role="local", syntax=SYNTAX)


def define() -> None:
    """Defines the flags."""
    recipe_flags.define()
    entry.define_log_format()
    role_flags.define_run_dir()
    role_flags.define_checkpoints()
    role_flags.define_initial_values()
    role_flags.define_trace()
    role_flags.define_page(0)
    role_flags.define_evaluator("Whether to score checkpoints on held-out data.")
    flags.DEFINE_integer("batch_size", None, "Short for --set=batch_size=N.")
    flags.DEFINE_integer("steps", None, "Short for --set=num_steps=N.")
    flags.DEFINE_float("epochs", None, "Passes over the data, in place of a number of steps: --set=epochs=N.")
    flags.DEFINE_boolean("print_layout", None, "Print the layout first; paper_shape does by default.")
    text = "First port of loopback for Prometheus' /metrics; every process takes the next one. 0: none."
    flags.DEFINE_integer("metrics_port", 0, text, lower_bound=0, upper_bound=65535)
    flags.DEFINE_string("arena_parent", None, "Where the shards' memory is kept; /dev/shm if it has room.")


def from_flags(argv: Sequence[str]) -> RunConfig:
    """Returns the configuration of the command line, which `argv` is."""
    values = flags.FLAGS.flag_values_dict()
    name, overrides = recipe_flags.read()
    shortcuts = (("batch_size", values["batch_size"]), ("num_steps", values["steps"]), ("epochs", values["epochs"]))
    return RunConfig(
        name,
        (*overrides, *(f"{key}={value}" for key, value in shortcuts if value is not None)),
        run_dir=Path(values["run_dir"]) if values["run_dir"] else None,
        evaluator=bool(values["evaluator"]),
        arena_parent=Path(values["arena_parent"]) if values["arena_parent"] else None,
        checkpoints=role_flags.checkpoints(),
        init_from=values["init_from"] or "",
        init_only=tuple(values["init_only"] or ()),
        trace_steps=role_flags.trace_steps(),
        print_layout=values["print_layout"],
        log_format=values["log_format"],
        verbosity=None if flags.FLAGS["verbosity"].using_default_value else values["verbosity"],
        metrics_port=values["metrics_port"],
        page_port=role_flags.page_port(),
        how_to_resume=resume_command(argv),
    )


def resume_command(argv: Sequence[str]) -> str:
    """Returns a command line with `--resume`, without flags that contradict it."""
    program = argv[0] if argv[0].startswith("downpour ") else "python -m downpour.launch.local"
    words, skip = [], False
    for word in argv[1:]:
        name = word.lstrip("-").partition("=")[0]
        if not skip and name not in _CONTRADICT:
            words.append(word)
        skip = not skip and name in _CONTRADICT_WITH_VALUE and "=" not in word
    return f"{program} {shlex.join([*words, '--resume'])}"


def run(config: RunConfig) -> int | None:
    """Runs a job until it ends or a signal ends it, and prints the results; returns the exit code of a failure."""
    local = LocalRun(config)
    try:
        with signals.handled(local.interrupt), local:
            summary = local.start().wait()
    except Stopped as error:
        entry.say(f"{error}; every process has ended")
        _print_notes(error)
        return error.code
    except ProcessFailed as error:
        _print_notes(error)
        full = shutil.disk_usage(config.folder).free < _FULL_BYTES
        entry.say_failed(f"{error}{f'; the disk of {config.folder} is full' if full else ''}")
        return error.code
    print(report.cost_table(summary))
    if ended := report.early_end(summary, config.job):
        print(ended)
    print(f"RESULT {json.dumps(summary)}", flush=True)
    return None


def _print_notes(error: BaseException) -> None:
    for note in getattr(error, "__notes__", ()):
        entry.say(note)
