"""Photographs, and one file of each awkward kind."""

from __future__ import annotations

import io
import struct
import zlib
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

# Real photographs that lie beside a checkout on some machines; without them, noise is drawn.
SHARED = Path(__file__).parents[5] / "shared" / "data"
RED, CLEAR = (200, 60, 40), 0


def saved(image: Image.Image, kind: str, **arguments: Any) -> bytes:
    image.save(file := io.BytesIO(), kind, **arguments)
    return file.getvalue()


@cache
def _sources() -> list[Image.Image]:
    found = sorted((SHARED / "raccoon" / "images").glob("*.jpg"))[:12]
    if found:
        return [Image.open(path).convert("RGB") for path in found]
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 256, (20, 30, 3), np.uint8)).resize((300, 200)) for _ in range(4)]


def photo(number: int) -> bytes:
    """A JPEG of its own for every number, 60 to 139 pixels wide."""
    source = _sources()[number % len(_sources())]
    width, height = 60 + number % 80, 50 + number % 30
    left, top = (number * 37) % (source.width - width), (number * 53) % (source.height - height)
    return saved(source.crop((left, top, left + width, top + height)), "JPEG", quality=90)


def png_of_16_bits(width: int, height: int) -> bytes:
    """RGB, which Pillow cannot write: red 0xC8FF, green 0x3CFF, blue 0x28FF."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    rows = (b"\0" + struct.pack(">HHH", 0xC8FF, 0x3CFF, 0x28FF) * width) * height
    parts = (chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def _files() -> dict[str, tuple[bytes, tuple[str, ...]]]:
    red = Image.new("RGB", (32, 24), RED)
    clear = red.convert("RGBA")
    clear.putalpha(CLEAR)
    turned = Image.Exif()
    turned[0x0112] = 6
    black = [Image.new("RGB", (32, 24))]
    deep = Image.fromarray(np.full((24, 32), 0xC8FF, np.uint16))
    bomb = Image.new("1", (12_000, 12_000))
    index = red.quantize(2)
    return {
        "cmyk.jpg": (saved(red.convert("CMYK"), "JPEG", quality=95), ("CMYK",)),
        "deep.png": (png_of_16_bits(32, 24), ("16-bit",)),
        "deep_grey.png": (saved(deep, "PNG"), ("16-bit", "grey")),
        "deep.tif": (saved(deep, "TIFF"), ("16-bit", "format", "grey")),
        "palette.png": (saved(index, "PNG"), ("palette",)),
        "palette_clear.png": (saved(index, "PNG", transparency=index.getpixel((0, 0))), ("alpha", "palette")),
        "animated.gif": (
            saved(red, "GIF", save_all=True, append_images=black), ("animated", "format", "palette")),
        "animated.webp": (
            saved(red, "WEBP", save_all=True, append_images=black, lossless=True), ("animated", "format")),
        "animated.png": (saved(red, "PNG", save_all=True, append_images=black), ("animated",)),
        "rotated.jpg": (saved(red, "JPEG", exif=turned, quality=95), ("rotated",)),
        "grey.jpg": (saved(red.convert("L"), "JPEG"), ("grey",)),
        "line.png": (saved(red.convert("1"), "PNG"), ("grey",)),
        "clear.png": (saved(clear, "PNG"), ("alpha",)),
        "clear_grey.png": (saved(clear.convert("LA"), "PNG"), ("alpha", "grey")),
        "bitmap.bmp": (saved(red, "BMP"), ("format",)),
        "scan.tif": (saved(red, "TIFF"), ("format",)),
        "truncated.jpg": (photo(1)[:-400], ("damaged",)),
        "truncated.png": (saved(_sources()[0], "PNG")[:-4000], ("damaged",)),
        "png_called.jpg": (saved(red, "PNG"), ("misnamed",)),
        "empty.jpg": (b"", ("empty",)),
        "text.jpg": (b"no picture at all\n", ("not a picture",)),
        "bomb.png": (saved(bomb, "PNG"), ("too large",)),
        "float.tif": (saved(Image.new("F", (9, 9)), "TIFF"), ("no range",)),
        "telephone.jpg": (saved(red, "MPO", save_all=True, append_images=black), ()),
    }  # fmt: skip


# Name -> content, and what `pictures.KINDS` has of it.
FILES = _files()
