"""Writes a data set's files, made of what Python packages carry; nothing is downloaded from elsewhere.

    downpour prepare openmoji --out=data/openmoji

The data sets: `openmoji`, pictures with many labels each, which the recipe `quickstart` trains on.
"""

from __future__ import annotations

from pathlib import Path

from absl import flags

from downpour.launch.roles import entry
from downpour.launch.roles.command_line import Syntax

SYNTAX = Syntax("dataset out", positional="dataset")
_DATASETS = ("openmoji",)


def main() -> None:
    """Writes the data set of the flags."""
    define()
    entry.run(_main, role="prepare", syntax=SYNTAX)


def define() -> None:
    """Defines the flags."""
    flags.DEFINE_enum("dataset", None, _DATASETS, "Name of the data set.")
    flags.DEFINE_string("out", None, "Folder to write to; data/DATASET by default.")


def _main() -> None:
    dataset, out = flags.FLAGS["dataset"].value, flags.FLAGS["out"].value
    if not dataset:
        raise ValueError(f"no data set; give one of {', '.join(_DATASETS)}: downpour prepare openmoji")
    from downpour.model.vision import openmoji

    print(openmoji.prepare(Path(out or f"data/{dataset}")))


if __name__ == "__main__":
    main()
