"""Awkward pictures: what becomes of each, kept byte for byte, converted or skipped.

A picture is kept as it is if `downpour.model.vision.decode` reads from it what a person sees: JPEG, and PNG of at most
8 bits without transparency. Everything else of `_FORMATS` is converted, as `KINDS` says: to JPEG of quality 95
without chroma subsampling where the source is lossy (JPEG, WebP, AVIF, JPEG 2000), else to PNG. The content decides
what a file is, never its name. Every picture that is kept is decoded once, JPEG at an eighth of its size, to find those
that are damaged. Colour profiles are ignored, as the decoder does.

Pillow is imported when the first picture is examined.
"""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from dataclasses import dataclass
from functools import cache
from pathlib import PurePath
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from downpour import how_to_install

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageFile import ImageFile

MAX_PIXELS = 100_000_000
SKIPPED, CONVERTED, KEPT = "skipped", "converted", "kept"


class Kind(NamedTuple):
    """What becomes of a kind of picture: `skipped`, `converted` or `kept`; and why or how."""

    outcome: str
    text: str


# What is read. Pillow knows more, some by programs of which a stranger's file should not be the input (EPS).
_FORMATS = ("JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF", "AVIF", "JPEG2000", "PPM")

KINDS = {
    "empty": Kind(SKIPPED, "the file has no bytes"),
    "missing": Kind(SKIPPED, "the file is not there or may not be read"),
    "not a picture": Kind(SKIPPED, f"none of {', '.join(_FORMATS)}"),
    "damaged": Kind(SKIPPED, "truncated, or its pixels cannot be decoded"),
    "too large": Kind(SKIPPED, f"over {MAX_PIXELS // 10**6} million pixels, which a small file may claim"),
    "no range": Kind(SKIPPED, "pixels are 32-bit integers or floats, so black and white are not defined"),
    "16-bit": Kind(CONVERTED, "the upper 8 bits are taken"),
    "CMYK": Kind(CONVERTED, "inks are converted to RGB, without a colour profile"),
    "alpha": Kind(CONVERTED, "transparency is composed on white"),
    "animated": Kind(CONVERTED, "of several frames or pages the first is taken"),
    "rotated": Kind(CONVERTED, "turned or mirrored as its EXIF orientation says"),
    "format": Kind(CONVERTED, "neither JPEG nor PNG: re-encoded"),
    "shrunk": Kind(CONVERTED, "its longer side was over --max_side"),
    "grey": Kind(KEPT, "decoded as three equal channels"),
    "palette": Kind(KEPT, "decoded to the colours of its palette"),
    "misnamed": Kind(KEPT, "its name says another format than its content, which decides"),
}

_LOSSY = frozenset({"JPEG", "WEBP", "AVIF", "JPEG2000"})
_ORIENTATION = 0x0112  # EXIF
_BITS_PER_SAMPLE = 258  # TIFF
_PNG_DEPTH = 24  # offset of the bit depth in a PNG file
# What Pillow's readers raise for files that are not what they begin as.
_DAMAGE = (OSError, SyntaxError, ValueError, EOFError, LookupError, TypeError, OverflowError, RuntimeError,
           struct.error, zlib.error)  # fmt: skip


class Unusable(ValueError):
    """A picture that is skipped; `kind` is one of `KINDS`."""

    def __init__(self, kind: str, text: str = "") -> None:
        super().__init__(text or KINDS[kind].text)
        self.kind = kind


@dataclass(frozen=True)
class Examined:
    """A picture that can be decoded.

    Attributes:
        encoded: JPEG or PNG.
        format: Of the source, as Pillow names it.
        size: Width and height of the source in pixels, before it was turned or shrunk.
        kinds: What `KINDS` has of it; none for an ordinary picture.
    """

    encoded: bytes
    format: str
    size: tuple[int, int]
    kinds: tuple[str, ...] = ()


def examine(data: bytes, name: str, max_side: int = 0) -> Examined:
    """Checks a picture, and converts it where that is needed.

    Args:
        data: Content of the file.
        name: Name of the file, whose ending is compared with the content.
        max_side: Limit of the longer side, in pixels; 0 for none.

    Raises:
        Unusable: The picture is to be skipped.
        ValueError: Pillow is not installed.
    """
    if not data:
        raise Unusable("empty")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns of what is decided here
        image = _open(data)
        size = image.size  # `draft` changes it
        try:
            kinds = _kinds(image, data, name, max_side)
            if any(KINDS[kind].outcome == CONVERTED for kind in kinds):
                encoded = _converted(image, max_side)
            else:
                image.draft("L", (1, 1))  # an eighth of the pixels, from all of the bytes
                image.load()
                encoded = data
        except Unusable:
            raise
        except _DAMAGE as error:
            raise Unusable("damaged", f"{KINDS['damaged'].text}: {error}") from error
        return Examined(encoded, _format(image), size, kinds)


def thumbnail(encoded: bytes, side: int) -> bytes:
    """A small JPEG of a picture that was examined; its longer side has `side` pixels at most."""
    from PIL import Image

    image = Image.open(io.BytesIO(encoded))
    image.draft("RGB", (side, side))
    small = image.convert("RGB")
    small.thumbnail((side, side))
    small.save(file := io.BytesIO(), "JPEG", quality=80)
    return file.getvalue()


def check_installed() -> None:
    """Raises `ValueError` if Pillow is not installed."""
    try:
        import PIL.Image  # noqa: F401
    except ModuleNotFoundError as error:
        raise ValueError(
            f"preparing pictures needs Pillow, which is not installed; install it: {how_to_install('images')}"
        ) from error


def _open(data: bytes) -> ImageFile:
    from PIL import Image

    try:
        image = Image.open(io.BytesIO(data), formats=_readable())
    except Image.DecompressionBombError as error:
        raise Unusable("too large") from error
    except _DAMAGE as error:
        raise Unusable("not a picture") from error
    if image.width * image.height > MAX_PIXELS:
        raise Unusable("too large", f"{image.width} x {image.height}: {KINDS['too large'].text}")
    return image


def _format(image: Image) -> str:
    """Its format; a JPEG file with further pictures behind the first (MPO, of telephones) is JPEG."""
    found = image.format or "unknown"
    return "JPEG" if found == "MPO" else found


def _kinds(image: ImageFile, data: bytes, name: str, max_side: int) -> tuple[str, ...]:
    """What `KINDS` has of a picture whose header was read, in the order of that table."""
    deep, found = _is_deep(image, data), _format(image)
    if image.mode in ("I", "F") and not deep:
        raise Unusable("no range")
    is_true = {
        "16-bit": deep,
        "CMYK": image.mode == "CMYK",
        "alpha": image.has_transparency_data and not image.mode.startswith("I"),
        "animated": image.format != "MPO" and getattr(image, "is_animated", False),
        "rotated": image.getexif().get(_ORIENTATION, 1) in range(2, 9),
        "format": found not in ("JPEG", "PNG"),
        "shrunk": 0 < max_side < max(image.size),
        "grey": image.mode in ("1", "L", "LA", "I;16"),
        "palette": image.mode in ("P", "PA"),
        "misnamed": _formats_by_ending().get(PurePath(name).suffix.lower(), found) != found,
    }
    return tuple(kind for kind, holds in is_true.items() if holds)


def _is_deep(image: Image, data: bytes) -> bool:
    """Whether a channel has 16 bits; of most such pictures Pillow's mode does not say so."""
    if image.format == "PNG":
        return data[_PNG_DEPTH] == 16
    if image.format == "TIFF":
        bits = getattr(image, "tag_v2", {}).get(_BITS_PER_SAMPLE, (8,))
        return max(bits) == 16 and image.mode != "F"
    return image.mode.startswith("I;16")


@cache
def _readable() -> tuple[str, ...]:
    """Those of `_FORMATS` that this Pillow was built with."""
    from PIL import Image

    Image.init()
    return tuple(each for each in _FORMATS if each in Image.OPEN)


@cache
def _formats_by_ending() -> dict[str, str]:
    from PIL import Image

    found = Image.registered_extensions()
    return {ending: "JPEG" if name == "MPO" else name for ending, name in found.items()}


def _converted(image: ImageFile, max_side: int) -> bytes:
    from PIL import ImageOps

    lossy = _format(image) in _LOSSY
    if max_side:
        image.draft(None, (2 * max_side, 2 * max_side))  # decodes fewer pixels; the rest is done below
    image.load()
    turned = ImageOps.exif_transpose(image)
    plain = _eight_bits(turned)
    if max_side:
        plain.thumbnail((max_side, max_side))
    file = io.BytesIO()
    if lossy:
        plain.save(file, "JPEG", quality=95, subsampling=0)
    else:
        plain.save(file, "PNG", icc_profile=None)
    return file.getvalue()


def _eight_bits(image: Image) -> Image:
    """Mode L or RGB, on white."""
    from PIL import Image

    if image.mode.startswith("I"):
        return Image.fromarray((np.asarray(image) >> 8).clip(0, 255).astype(np.uint8))
    if image.has_transparency_data:
        above = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", above.size, "white"), above).convert("RGB")
    return image if image.mode in ("L", "RGB") else image.convert("RGB")
