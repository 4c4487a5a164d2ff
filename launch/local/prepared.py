"""The file with layout and initial values that a launcher's preflight writes for its chief.

With it the chief neither loads TensorFlow nor builds the model. The file is in the launcher's scratch folder.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from downpour.ps.layout import Layout, from_canonical


def write(path: Path, layout: Layout, values: Sequence[np.ndarray]) -> None:
    """Writes the layout and one array per variable, in its order."""
    arrays = {str(number): np.asarray(value, np.float32) for number, value in enumerate(values)}
    with path.open("wb") as file:
        np.savez(file, layout=np.array(layout.canonical), **arrays)  # type: ignore[arg-type]


def read_layout(path: Path) -> Layout:
    """Reads the layout.

    Raises:
        ValueError: `write` has not written the file.
    """
    with np.load(path, allow_pickle=False) as found:
        return from_canonical(str(found["layout"]))


def read_values(path: Path) -> list[np.ndarray]:
    """Reads one float32 array per variable, in the layout's order."""
    with np.load(path, allow_pickle=False) as found:
        return [found[str(number)] for number in range(len(found) - 1)]
