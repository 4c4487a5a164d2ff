"""A window of an image, as a value. Imports nothing that takes time, so that a recipe can name its data without it."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Window(NamedTuple):
    """A square part of a resized image, in pixels; `is_mirrored` turns its left to its right."""

    top: int
    left: int
    side: int
    is_mirrored: bool = False

    def of(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """A view of the window of a whole image [R, R, 3]."""
        part = image[self.top : self.top + self.side, self.left : self.left + self.side]
        return part[:, ::-1] if self.is_mirrored else part
