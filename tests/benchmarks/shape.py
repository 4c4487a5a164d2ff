"""What the paper's model looks like to the shards: names, shapes and kinds of its variables, without TensorFlow.

`resnet101_18291.json` lists the variables of ResNet-101 with 18,291 labels as [name, shape, kind]. Written by

    python -m tests.benchmarks.shape

which builds the model (the only time TensorFlow is imported here) and asks `worker.step.variables_of`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from downpour.ps.layout import FACTORED, STATISTIC, TRAINED, Layout, Slicing, Variable, lay_out

ROOT = Path(__file__).parents[2]
PAPER = Path(__file__).with_name("resnet101_18291.json")

WEIGHT_DECAY = 1e-4
SLICING = Slicing("head/*", num_slices=50)
HEAD_KERNEL = "head/kernel"
BATCH_SIZE = 32  # rows of the factors


def read_variables(path: Path) -> list[Variable]:
    """The variables a file lists, with the paper's weight decay.

    Raises:
        ValueError: The file cannot be read, or lists something else.
    """
    try:
        entries = json.loads(path.read_text())
        decays = {TRAINED: WEIGHT_DECAY, STATISTIC: 0.0}
        return [Variable(name, tuple(shape), kind, decays[kind]) for name, shape, kind in entries]
    except (KeyError, OSError, TypeError, ValueError) as error:
        raise ValueError(f"--variables={path}: {error}; give a JSON list of [name, shape, kind]") from None


def layout_of(path: Path, num_shards: int, *, factored: bool = False) -> Layout:
    """The layout of the variables a file lists, with the head in 50 slices, and its kernel factored or not."""
    variables = read_variables(path)
    if factored:
        variables = [replace(v, kind=FACTORED) if v.name == HEAD_KERNEL else v for v in variables]
    return lay_out(variables, num_shards, (SLICING,))


def initial_values(layout: Layout) -> list[np.ndarray]:
    """For every variable small random float32 numbers, like a trained model's."""
    random = np.random.default_rng(0)
    return [random.standard_normal(v.shape, np.float32) * np.float32(0.02) for v in layout.variables]


def _variables_of_the_model() -> Sequence[Variable]:
    from downpour.model.vision.resnet import ResNet
    from downpour.worker.step.variables import variables_of

    return variables_of(ResNet(depth=101).build(image_size=299, num_labels=18_291))


def main() -> None:
    """Writes the file of the paper's model, one variable a line."""
    lines = [json.dumps([v.name, list(v.shape), v.kind]) for v in _variables_of_the_model()]
    PAPER.write_text("[\n" + ",\n".join(lines) + "\n]\n")
    print(f"{PAPER.name}: {len(lines)} variables")


if __name__ == "__main__":
    main()
