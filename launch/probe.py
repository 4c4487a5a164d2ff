"""Fits a linear classifier on features and prints its score on the held-out pictures.

    downpour probe features.parquet

The file is one that `downpour features` has written. Pictures with one label each are told apart by multinomial
logistic regression, scored by top-1 and top-5 accuracy; where some have several, every label has a regression of its
own, scored by mAP@100. Features are standardised; the strength of regularisation is chosen on a fifth of the training
pictures. Without held-out pictures a fifth of all is held out. The last line is `RESULT {json}`.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from absl import flags

from downpour.launch.roles import entry
from downpour.launch.roles.command_line import Syntax

SYNTAX = Syntax("features seed", positional="features")


def main() -> None:
    """Prints the score."""
    define()
    entry.run(_main, role="probe", syntax=SYNTAX)


def define() -> None:
    """Defines the flags."""
    flags.DEFINE_string("features", None, "File of features, .parquet or .npz.")
    flags.DEFINE_integer("seed", 0, "Seed of what is held out.")


def _main() -> None:
    path = flags.FLAGS["features"].value
    if not path:
        raise ValueError("no features; give the file that downpour features has written")
    from downpour.model.vision import feature_files
    from downpour.model.vision.probe import probe

    features = feature_files.read(Path(path))
    found = probe(features, int(flags.FLAGS["seed"].value or 0))
    shown = ", ".join(f"{name} {value:.4f}" for name, value in found.scores.items())
    print(f"{shown} on {found.num_heldout} held-out pictures; fitted on {found.num_train}, C = {found.strength:g}")
    print(f"RESULT {json.dumps(asdict(found))}")


if __name__ == "__main__":
    main()
