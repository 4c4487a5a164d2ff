"""What a launcher's preflight has built, in a file for its chief: the layout and the initial values.

So that the chief neither loads TensorFlow nor builds the model again. The file lies in the launcher's scratch folder.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from downpour.ps.layout import Layout, from_canonical


def write(path: Path, layout: Layout, values: Sequence[np.ndarray]) -> None:
    """Writes the layout and one array a variable, in its order."""
    arrays = {str(number): np.asarray(value, np.float32) for number, value in enumerate(values)}
    with path.open("wb") as file:
        np.savez(file, layout=np.array(layout.canonical), **arrays)  # type: ignore[arg-type]


def read_layout(path: Path) -> Layout:
    """The layout.

    Raises:
        ValueError: The file is not one of `write`.
    """
    with np.load(path, allow_pickle=False) as found:
        return from_canonical(str(found["layout"]))


def read_values(path: Path) -> list[np.ndarray]:
    """One float32 array a variable, in the layout's order."""
    with np.load(path, allow_pickle=False) as found:
        return [found[str(number)] for number in range(len(found) - 1)]
