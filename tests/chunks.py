"""Chunks as whole messages, as they arrive."""

from __future__ import annotations

from typing import Any

import numpy as np

from downpour.proto import codec


def encode_chunk(start: int, wire: int, values: np.ndarray, *more: Any, **and_more: Any) -> bytes:
    """In one piece; arguments as those of `codec.chunk_parts`."""
    return b"".join(codec.chunk_parts(start, wire, values, *more, **and_more))
