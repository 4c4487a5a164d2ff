"""Photographs that come with scikit-learn, read without importing it, which takes seconds."""

from __future__ import annotations

import importlib.util
import io
from pathlib import Path

from PIL import Image


def photograph(name: str) -> Image.Image:
    """`china.jpg` or `flower.jpg`, 640 x 427 pixels."""
    spec = importlib.util.find_spec("sklearn")
    assert spec is not None and spec.origin is not None
    return Image.open(Path(spec.origin).parent / "datasets" / "images" / name).convert("RGB")


def encoded(picture: Image.Image, kind: str = "png", **options: int) -> bytes:
    """The content of a file of that kind."""
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()
