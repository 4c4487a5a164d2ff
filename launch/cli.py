"""The console script: `downpour COMMAND --flags`; `python -m downpour.launch.cli` is the same.

Imports only the module of the command, so that `downpour ps` needs no TensorFlow.
"""

from __future__ import annotations

import difflib
import importlib
import sys

from downpour import __version__
from downpour.launch.roles import entry

# Command -> its module, which has `define`, of its flags, and `main`; and what it does, for --help.
COMMANDS = {
    "train": ("downpour.launch.local.run", "train on this machine, every role as a process of its own"),
    "local": ("downpour.launch.local.run", "the same"),
    "status": ("downpour.launch.status", "show what a run does, or how it ended"),
    "top": ("downpour.launch.top", "show what a run does, all the time, in the terminal"),
    "recipes": ("downpour.launch.list_recipes", "list the recipes that come with Downpour"),
    "prepare": ("downpour.launch.prepare", "write a data set's files"),
    "duplicates": ("downpour.launch.duplicates", "find pictures of one data set that recur in another"),
    "layout": ("downpour.launch.layout_table", "print where a recipe's parameters are placed"),
    "plan": ("downpour.launch.plan", "predict steps a second, bottleneck, staleness, number of shards"),
    "simulate": ("downpour.launch.simulate", "train in one process as fleets of any size would"),
    "study": ("downpour.launch.study", "train a grid: how a score grows with data, labels, capacity"),
    "advise": ("downpour.launch.advise", "recommend settings for a fleet, by simulating it"),
    "export": ("downpour.launch.export", "write a checkpoint as a file that Keras loads"),
    "features": ("downpour.launch.features", "write what a network computes below its head for pictures"),
    "probe": ("downpour.launch.probe", "fit and score a linear classifier on features"),
    "ssh": ("downpour.launch.ssh", "train on the hosts that a file lists"),
    "kubernetes": ("downpour.launch.kubernetes.command", "write Kubernetes manifests of a recipe's job"),
    "certs": ("downpour.launch.certs", "make a job's certificates"),
    "ps": ("downpour.launch.ps", "run one parameter-server shard"),
    "worker": ("downpour.launch.worker", "run one worker"),
    "chief": ("downpour.launch.chief", "run the chief"),
    "evaluator": ("downpour.launch.evaluator", "run the evaluator"),
    "completion": ("downpour.launch.completion", "print the completion script of bash, zsh or fish"),
}
_EXAMPLES = """
    downpour train mine.py --epochs=3 --set=cluster.num_workers=4
    downpour status runs/mine
    downpour export mine.py --checkpoint=runs/mine --out=mine.keras
"""


def main() -> None:
    """Runs the command that is the first argument."""
    name = sys.argv[1] if len(sys.argv) > 1 else ""
    if name in ("--help", "--helpfull", "-h", "help"):
        print(usage())
        sys.exit(entry.OK)
    if name == "--version":
        print(f"downpour {__version__}")
        sys.exit(entry.OK)
    if name not in COMMANDS:
        near = "".join(f" did you mean {one!r}?" for one in difflib.get_close_matches(name, COMMANDS, 1))
        given = f"unknown command {name!r};{near}" if name else "no command;"
        entry.set_role("downpour")
        sys.exit(entry.refuse(ValueError(f"{given} the commands are {', '.join(COMMANDS)} (see --help)")))
    sys.argv = [f"downpour {name}", *sys.argv[2:]]
    importlib.import_module(COMMANDS[name][0]).main()


def usage() -> str:
    """What `downpour --help` shows: the commands, one a line."""
    lines = [f"  {name:<10}  {text}" for name, (_, text) in COMMANDS.items()]
    head = "Trains Keras models asynchronously, with parameter servers."
    rest = "downpour COMMAND --help describes a command and its flags; downpour --version."
    return "\n".join([head, _EXAMPLES, *lines, "", rest])


if __name__ == "__main__":
    main()
