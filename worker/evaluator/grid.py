"""Draws pictures in a grid, each with its true and its predicted labels, as one PNG; by Pillow, imported only here.

Threads: one.
"""

from __future__ import annotations

import importlib.util
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from absl import logging
from numpy.typing import NDArray

from downpour import how_to_install

_COLUMNS = 6  # for 18 pictures, a sheet of the form of TensorBoard's cards
_SIDE, _GAP = 150, 10  # of a picture, and between two, in pixels
_FONT, _LINE = 13, 16  # size, and from line to line
_LINES = 4  # of text below a picture
_GROUND, _INK, _MUTED = "#ffffff", "#202124", "#5f6368"
_RIGHT, _WRONG = "#137333", "#b3261e"


@dataclass(frozen=True)
class Example:
    """A picture and its labels.

    Attributes:
        picture: [height, width], or with 1 or 3 channels, float32.
        true: Names of its classes.
        predicted: Names of classes and their scores in [0, 1], best first.
        is_right: Whether the best prediction is one of its classes.
    """

    picture: NDArray[np.float32]
    true: tuple[str, ...]
    predicted: tuple[tuple[str, float], ...]
    is_right: bool


def draw(examples: Sequence[Example]) -> bytes:
    """Returns a PNG; empty where Pillow is not installed, which is logged."""
    if importlib.util.find_spec("PIL") is None:
        logging.log_first_n(logging.WARNING, "no grid of pictures: %s", 1, how_to_install("tensorboard"))
        return b""
    from PIL import Image, ImageDraw, ImageFont

    font: Any = ImageFont.load_default(_FONT)
    rows, texts = math.ceil(len(examples) / _COLUMNS), [_lines(one) for one in examples]
    wide, high = _SIDE + _GAP, _SIDE + _LINE * max(map(len, texts)) + _GAP
    sheet = Image.new("RGB", (_COLUMNS * wide + _GAP, rows * high + _GAP), _GROUND)
    pen = ImageDraw.Draw(sheet)
    for number, (lines, pixels) in enumerate(zip(texts, _pixels([one.picture for one in examples]), strict=True)):
        left, top = _GAP + number % _COLUMNS * wide, _GAP + number // _COLUMNS * high
        small = max(pixels.shape[:2]) * 2 <= _SIDE  # their pixels are shown as they are
        picture = Image.fromarray(pixels)
        scale = _SIDE / max(picture.size)
        size = max(1, round(scale * picture.width)), max(1, round(scale * picture.height))
        picture = picture.resize(size, Image.Resampling.NEAREST if small else Image.Resampling.LANCZOS)
        sheet.paste(picture, (left + (_SIDE - size[0]) // 2, top + (_SIDE - size[1]) // 2))
        for at, (text, ink) in enumerate(lines):
            pen.text((left, top + _SIDE + 2 + at * _LINE), _fitted(text, font), ink, font)
    file = io.BytesIO()
    sheet.save(file, "PNG", optimize=True)
    return file.getvalue()


def _lines(one: Example) -> list[tuple[str, str]]:
    """Up to `_LINES` lines of text and their colours: what is true, then what is predicted."""
    said = "right" if one.is_right else "wrong"
    found = [(f"true: {name}", _INK) for name in one.true[-1:] or ("no class",)]
    if len(one.true) > 1:
        found[0] = (f"{found[0][0]} (+{len(one.true) - 1})", _INK)
    inks = [_RIGHT if one.is_right else _WRONG, *[_MUTED] * _LINES]
    words = [f"{score:.2f} {name}" for name, score in one.predicted]
    words[0] = f"{said}: {words[0]}"
    return [*found, *zip(words, inks, strict=False)][:_LINES]


def _fitted(text: str, font: Any) -> str:
    """A text that is as wide as a picture at most; what is in the middle of a longer one is left out."""
    if font.getlength(text) <= _SIDE:
        return text
    kept = len(text)
    while kept > 2 and font.getlength(_without_middle(text, kept)) > _SIDE:
        kept -= 1
    return _without_middle(text, kept)


def _without_middle(text: str, kept: int) -> str:
    head = kept // 2
    return f"{text[:head]}\N{HORIZONTAL ELLIPSIS}{text[len(text) - (kept - head) :]}"


def _pixels(pictures: Sequence[NDArray[np.float32]]) -> list[NDArray[np.uint8]]:
    """[height, width, 3] bytes of each: the range of all values decides whether they are in [0, 255], [0, 1], [-1, 1].

    Values of another range are stretched to the whole of it.
    """
    low, high = min(float(each.min()) for each in pictures), max(float(each.max()) for each in pictures)
    known = next(((a, b) for a, b in ((0.0, 1.0), (-1.0, 1.0), (0.0, 255.0)) if a <= low and high <= b), (low, high))
    scale = 255 / max(known[1] - known[0], 1e-12)
    found = []
    for each in pictures:
        bytes_ = np.clip(np.rint((each - known[0]) * scale), 0, 255).astype(np.uint8)
        found.append(np.broadcast_to(bytes_.reshape(*bytes_.shape[:2], -1), (*bytes_.shape[:2], 3)).copy())
    return found
