"""Perceptual hashes of pictures, and which of many are near each other. Opens no data set, starts no thread.

Shapes: `N` pictures of one set, `M` of another, `V` and `W` hashes of each.
"""

from __future__ import annotations

import io
import itertools
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from downpour import how_to_install

# A set's hashes are of these windows of each picture (left, top, right, bottom, as parts of its sides): the whole, what
# is left when 2.5 % or 5 % are cut off every side, and when 5 % are cut off two sides. So a copy that was cropped meets
# the window it was cut to, and an original the whole of its copy.
_CUT = 0.05
WINDOWS = (
    (0.0, 0.0, 1.0, 1.0),
    (_CUT / 2, _CUT / 2, 1 - _CUT / 2, 1 - _CUT / 2),
    (_CUT, _CUT, 1 - _CUT, 1 - _CUT),
    *((left, top, left + 1 - _CUT, top + 1 - _CUT) for left in (0.0, _CUT) for top in (0.0, _CUT)),
)
MOST_SURE = 6  # distance up to which no pair is missed: of 8 bytes, 6 bits can change at most 6
FAR = 64  # a distance that no two hashes are within

_SIDE = 256  # pixels of the longer side from which windows are cut
_HASHED = 32  # side of what imagehash computes a hash of
_BYTES = 8  # of a hash
_PAIRS_AT_ONCE = 1 << 22
_NONE = np.int64(FAR) << 32

_Candidates = tuple[NDArray[np.int64], NDArray[np.int64]]  # rows, places


class NotAPicture(ValueError):
    """What should be a picture cannot be decoded."""


def check_installed() -> None:
    """Raises `ValueError`, with how to install it, if a package is missing."""
    try:
        import imagehash  # noqa: F401
    except ModuleNotFoundError as error:
        raise ValueError(
            f"hashing needs the package {error.name}; install it with {how_to_install('images')}"
        ) from error


def hashes(encoded: bytes, *, mirrored: bool) -> NDArray[np.uint64]:
    """Hashes of a picture's windows, [V]: of the picture, then, if `mirrored`, of its mirror image.

    The hash is imagehash's `phash`: 64 bits, of the signs of the lowest frequencies of the picture in grey.

    Raises:
        NotAPicture: Pillow cannot decode it.
    """
    import imagehash
    from PIL import Image, ImageOps

    try:
        image = Image.open(io.BytesIO(encoded))
        image.draft("L", (_SIDE, _SIDE))  # a JPEG is decoded at an eighth to the whole of its size
        grey = image.convert("L")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise NotAPicture(str(error)) from error
    grey.thumbnail((_SIDE, _SIDE))
    found = []
    for each in (grey, ImageOps.mirror(grey)) if mirrored else (grey,):
        for left, top, right, bottom in WINDOWS:
            box = left * each.width, top * each.height, right * each.width, bottom * each.height
            window = each.resize((_HASHED, _HASHED), Image.Resampling.LANCZOS, box)
            found.append(imagehash.phash(window).hash.ravel())
    packed: NDArray[np.uint64] = np.packbits(np.array(found), axis=1).view(np.uint64).ravel()
    return packed


def nearest(
    first: NDArray[np.uint64], second: NDArray[np.uint64], distance: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """For every picture of the first set, the nearest of the second, if there is one within a distance.

    The distance of two pictures is the smallest Hamming distance of a whole of either (mirrored or not) to a window of
    the other. Cost grows about as N + M while the sets are smaller than some millions (see `_near`).

    Args:
        first: [N, V] hashes without mirror images.
        second: [M, 2 V] hashes with them.
        distance: In bits. Up to 6 nothing within it is missed; beyond, pairs may be whose bits differ in 7 of 8 bytes.

    Returns:
        [N] distances, 64 for none within `distance`; and [N] numbers of pictures of the second set.
    """
    num_windows = len(WINDOWS)
    best = np.full(len(first), _NONE)
    if len(first) and len(second):
        wholes = second[:, [0, num_windows]]
        best = np.minimum(_near(first[:, :1], second, distance), _near(first[:, 1:], wholes, distance))
    return best >> 32, best & 0xFFFFFFFF


def _near(first: NDArray[np.uint64], second: NDArray[np.uint64], distance: int) -> NDArray[np.int64]:
    """[N] distance and number in `second`, as one number, of the nearest that agrees with a hash in two whole bytes.

    Hashes with two bytes in common are candidates; their distance is computed. Two bytes have 65,536 values, so most
    hashes have few candidates, and sorting costs most. Equal hashes are compared once.
    """
    queries, back = np.unique(first.ravel(), return_inverse=True)
    values, at = np.unique(second.ravel(), return_index=True)
    owners = at // second.shape[1]
    best = np.full(len(queries), _NONE)
    query_bytes, value_bytes = (each.view(np.uint8).reshape(-1, _BYTES) for each in (queries, values))
    for pair in itertools.combinations(range(_BYTES), 2):
        keys, searched = (_joined(each[:, pair]) for each in (value_bytes, query_bytes))
        order = np.argsort(keys, kind="stable")
        keys = keys[order]
        starts = np.searchsorted(keys, searched, "left")
        counts = np.searchsorted(keys, searched, "right") - starts
        for rows, places in _candidates(starts, counts):
            columns = order[places]
            distances = np.bitwise_count(queries[rows] ^ values[columns])
            kept = distances <= distance
            found = (distances[kept].astype(np.int64) << 32) | owners[columns[kept]]
            np.minimum.at(best, rows[kept], found)
    nearest_of_each: NDArray[np.int64] = best[back].reshape(first.shape).min(axis=1)
    return nearest_of_each


def _joined(two: NDArray[np.uint8]) -> NDArray[np.uint16]:
    return np.ascontiguousarray(two).view(np.uint16).ravel()


def _candidates(starts: NDArray[np.int64], counts: NDArray[np.int64]) -> Iterator[_Candidates]:
    """Every row with each of its `counts` places from `starts` on, some million at a time."""
    ends = np.cumsum(counts)
    row = 0
    while row < len(counts):
        done = ends[row - 1] if row else 0
        stop = max(row + 1, int(np.searchsorted(ends, done + _PAIRS_AT_ONCE, "right")))
        some = counts[row:stop]
        rows = np.repeat(np.arange(row, stop), some)
        within = np.arange(len(rows)) - np.repeat(np.cumsum(some) - some, some)
        yield rows, np.repeat(starts[row:stop], some) + within
        row = stop
