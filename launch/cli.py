"""The console script: `downpour SUBCOMMAND --flags`; `python -m downpour.launch.cli` is the same.

Imports only the module of the subcommand, so that `downpour ps` needs no TensorFlow.
"""

from __future__ import annotations

import difflib
import importlib
import sys
from pathlib import Path

from absl import flags

from downpour import __version__
from downpour.launch.roles import entry

_SUBCOMMANDS = {
    "train": ("downpour.launch.local.run", "train on this machine, every role as a process of its own"),
    "local": ("downpour.launch.local.run", "the same"),
    "recipes": ("downpour.launch.cli", "list the recipes that come with Downpour"),
    "ps": ("downpour.launch.ps", "one parameter-server shard"),
    "worker": ("downpour.launch.worker", "one worker"),
    "chief": ("downpour.launch.chief", "the chief"),
    "evaluator": ("downpour.launch.evaluator", "the evaluator"),
    "layout": ("downpour.launch.layout_table", "print where a recipe's parameters are placed"),
    "prepare": ("downpour.launch.cli", "write a data set's files: prepare openmoji --out=data/openmoji"),
    "certs": ("downpour.launch.certs", "make a job's certificates: certs --job=NAME --out=FOLDER"),
    "kubernetes": ("downpour.launch.kubernetes.command", "write Kubernetes manifests of a recipe's job"),
    "export": ("downpour.launch.export", "write a checkpoint as a file that Keras loads"),
    "plan": ("downpour.launch.plan", "predict steps a second, bottleneck, staleness and the number of shards"),
    "ssh": ("downpour.launch.ssh", "train on the hosts that a file lists"),
}
_DATASETS = ("openmoji",)


def main() -> None:
    """Runs the subcommand that is the first argument."""
    name = sys.argv[1] if len(sys.argv) > 1 else ""
    if name in ("--help", "-h", "help"):
        print(usage())
        sys.exit(entry.OK)
    if name == "--version":
        print(f"downpour {__version__}")
        sys.exit(entry.OK)
    if name not in _SUBCOMMANDS:
        near = "".join(f", did you mean {one!r}?" for one in difflib.get_close_matches(name, _SUBCOMMANDS, 1))
        given = f"unknown subcommand {name!r}{near}" if name else "no subcommand"
        entry.set_role("downpour")
        sys.exit(entry.refuse(ValueError(f"{given}; the subcommands are {', '.join(_SUBCOMMANDS)} (see --help)")))
    sys.argv = [f"downpour {name}", *sys.argv[2:]]
    if name == "prepare":
        prepare_main()
    if name == "recipes":
        entry.run(_recipes, role="recipes")
    importlib.import_module(_SUBCOMMANDS[name][0]).main()


def _recipes() -> None:
    """Prints each recipe's name and the first line of its docstring."""
    from downpour.launch import recipes
    from downpour.launch.job import recipe

    for name in recipe.names():
        first = (importlib.import_module(f"{recipes.__name__}.{name}").__doc__ or "").partition("\n")[0]
        print(f"{name:<14} {first}")


def usage() -> str:
    """The subcommands, one a line."""
    lines = [f"  {name:<10} {text}" for name, (_, text) in _SUBCOMMANDS.items()]
    return "\n".join(["downpour SUBCOMMAND --flags   (downpour SUBCOMMAND --help lists its flags)", "", *lines])


def prepare_main() -> None:
    """`downpour prepare DATASET --out=FOLDER`."""
    is_named = len(sys.argv) > 1 and not sys.argv[1].startswith("-")
    dataset = sys.argv.pop(1) if is_named else ""
    flags.DEFINE_string("out", None, "Folder to write to; data/DATASET by default.")
    entry.run(lambda: _prepare(dataset, flags.FLAGS["out"].value), role="prepare")


def _prepare(dataset: str, out: str | None) -> None:
    if dataset not in _DATASETS:
        raise ValueError(f"data set {dataset!r} is not known; accepted are {', '.join(_DATASETS)}")
    from downpour.model.vision import openmoji

    print(openmoji.prepare(Path(out or f"data/{dataset}")))


if __name__ == "__main__":
    main()
