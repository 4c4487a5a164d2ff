from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageOps

from downpour.model.vision import hashing
from tests.model.vision.photos import encoded, photograph

WHOLE, MIRRORED = 0, len(hashing.WINDOWS)


def hashes(picture: Image.Image, *, mirrored: bool = False) -> np.ndarray:
    return hashing.hashes(encoded(picture), mirrored=mirrored)


def bits(one: np.uint64, other: np.uint64) -> int:
    return int(np.bitwise_count(one ^ other))


@pytest.fixture(scope="module")
def photo() -> Image.Image:
    return photograph("china.jpg")


@pytest.fixture(scope="module")
def tiles(photo: Image.Image) -> list[Image.Image]:
    """Twelve different parts of two photographs."""
    photos = photo, photograph("flower.jpg")
    boxes = [(x, y, x + 200, y + 200) for x in (0, 210, 420) for y in (0, 210)]
    return [each.crop(box) for each in photos for box in boxes]


def test_the_first_hash_is_imagehashs_own(photo: Image.Image) -> None:
    import imagehash

    small = photo.convert("L").resize((256, 171))
    found = hashes(small, mirrored=True)
    for number, picture in ((WHOLE, small), (MIRRORED, ImageOps.mirror(small))):
        assert found[number] == np.packbits(imagehash.phash(picture).hash).view(np.uint64)[0]
    assert len(found) == 2 * len(hashing.WINDOWS)
    assert (hashes(small) == found[:MIRRORED]).all()


def test_copies_are_near_their_original_and_of_12_pictures_no_two_are(tiles: list[Image.Image]) -> None:
    of_all = np.array([hashes(tile, mirrored=True) for tile in tiles])
    copies = {
        "resized": lambda tile: encoded(tile.resize((120, 120))),
        "recompressed": lambda tile: encoded(tile, "jpeg", quality=50),
        "trimmed": lambda tile: encoded(tile.crop((10, 10, 190, 190))),
        "cropped": lambda tile: encoded(tile.crop((0, 10, 190, 200))),
        "mirrored": lambda tile: encoded(ImageOps.mirror(tile)),
        "grey": lambda tile: encoded(tile.convert("L")),
    }
    for kind, copy in copies.items():
        of_copies = np.array([hashing.hashes(copy(tile), mirrored=True) for tile in tiles])
        # The copies are near their originals, and the originals near their copies.
        for first, second in ((of_copies, of_all), (of_all, of_copies)):
            distances, numbers = hashing.nearest(first[:, :MIRRORED], second, hashing.MOST_SURE)
            right = (numbers == np.arange(len(tiles))) & (distances <= hashing.MOST_SURE)
            assert np.count_nonzero(right) >= 11, f"{kind}: {distances}"
    for number in range(len(tiles)):
        others = np.delete(of_all, number, axis=0)
        assert hashing.nearest(of_all[number : number + 1, :MIRRORED], others, 6)[0][0] == hashing.FAR


def brute(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """[N, M] distances, pair by pair."""
    return np.array([
        [
            min(
                min(bits(one[0], each) for each in other),
                min(bits(each, other[whole]) for each in one for whole in (WHOLE, MIRRORED)),
            )
            for other in second
        ]
        for one in first
    ])  # fmt: skip


def test_nothing_within_six_bits_is_missed_and_the_nearest_is_named() -> None:
    rng = np.random.default_rng(0)
    first = rng.integers(0, 2**64, (30, MIRRORED), np.uint64)
    second = rng.integers(0, 2**64, (40, 2 * MIRRORED), np.uint64)
    for row in range(24):  # each near two, the second of them nearer
        of_first, of_second = (0, rng.integers(2 * MIRRORED)) if row % 2 else (rng.integers(1, MIRRORED), WHOLE)
        for column, num_bits in ((row, 6), (row + 12, row % 6)):
            flipped = sum(1 << int(bit) for bit in rng.choice(64, num_bits, replace=False))
            second[column, of_second] = first[row, of_first] ^ np.uint64(flipped)
    expected = brute(first, second)
    distances, numbers = hashing.nearest(first, second, 6)
    near = expected.min(axis=1) <= 6
    assert near.sum() == 24
    assert (distances[near] == expected.min(axis=1)[near]).all()
    assert (expected[np.arange(30), numbers * near][near] == distances[near]).all()
    assert (distances[~near] == hashing.FAR).all()
    assert (hashing.nearest(first, second, 3)[0] == np.where(distances <= 3, distances, hashing.FAR)).all()


def test_many_equal_hashes_cost_no_more_than_different_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    compared = []
    count = np.bitwise_count
    monkeypatch.setattr(np, "bitwise_count", lambda each: compared.append(len(each)) or count(each))
    blank = np.zeros((5000, 2 * MIRRORED), np.uint64)
    distances, numbers = hashing.nearest(blank[:, :MIRRORED], blank, 6)
    assert not distances.any() and not numbers.any()
    assert sum(compared) < 100


def test_candidates_are_computed_a_part_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(1)
    first = rng.integers(0, 8, (200, MIRRORED), np.uint64)  # which agree in seven bytes
    second = rng.integers(0, 64, (300, 2 * MIRRORED), np.uint64)
    whole = hashing.nearest(first, second, 6)
    monkeypatch.setattr(hashing, "_PAIRS_AT_ONCE", 7)
    assert all((one == other).all() for one, other in zip(whole, hashing.nearest(first, second, 6), strict=True))


def test_no_pictures_are_near_none() -> None:
    first, second = np.zeros((3, MIRRORED), np.uint64), np.zeros((0, 2 * MIRRORED), np.uint64)
    assert hashing.nearest(first, second, 6)[0].tolist() == [hashing.FAR] * 3
    assert hashing.nearest(first[:0], np.zeros((3, 2 * MIRRORED), np.uint64), 6)[0].tolist() == []


@pytest.mark.parametrize("data", [b"", b"nothing", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0"])
def test_what_is_no_picture_is_refused(data: bytes) -> None:
    with pytest.raises(hashing.NotAPicture):
        hashing.hashes(data, mirrored=False)


def test_a_truncated_picture_is_refused(photo: Image.Image) -> None:
    with pytest.raises(hashing.NotAPicture):
        hashing.hashes(encoded(photo, "jpeg")[:5000], mirrored=False)
