from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from downpour.model.vision.decode import Decoder
from downpour.model.vision.preparing.pictures import CONVERTED, KINDS, SKIPPED, Unusable, examine
from downpour.model.vision.records import LabelledImage, to_example
from tests.model.vision.preparing.awkward import FILES, RED, photo, saved

USABLE = [name for name, (_, kinds) in FILES.items() if not any(KINDS[kind].outcome == SKIPPED for kind in kinds)]
# What a person sees in a file, in place of red.
SEEN = {
    **dict.fromkeys(("clear.png", "clear_grey.png", "palette_clear.png"), (255, 255, 255)),
    **dict.fromkeys(("deep_grey.png", "deep.tif"), (200, 200, 200)),
    "grey.jpg": (100, 100, 100),
}


@pytest.fixture(scope="module")
def decoder() -> Decoder:
    return Decoder(resize=16, num_labels=1)


def decoded(decoder: Decoder, encoded: bytes) -> np.ndarray:
    return decoder(to_example(LabelledImage(encoded, (0,), ""))).image


def test_every_kind_is_among_the_files():
    assert {kind for _, kinds in FILES.values() for kind in kinds} == set(KINDS) - {"missing", "shrunk"}


@pytest.mark.parametrize("name", FILES)
def test_kinds_are_recognised(name):
    data, expected = FILES[name]
    if name in USABLE:
        found = examine(data, name)
        assert found.kinds == expected
        assert (found.encoded == data) == (not any(KINDS[kind].outcome == CONVERTED for kind in expected))
    else:
        with pytest.raises(Unusable) as refused:
            examine(data, name)
        assert (refused.value.kind,) == expected


@pytest.mark.parametrize("name", [name for name in USABLE if name != "line.png"])
def test_the_decoder_sees_what_a_person_sees(decoder, name):
    found = examine(FILES[name][0], name)
    image = decoded(decoder, found.encoded)
    assert np.abs(image.astype(int) - SEEN.get(name, RED)).max() <= 4


def test_a_turned_picture_stands_upright():
    upright = Image.new("RGB", (30, 20))
    upright.paste(RED, (0, 0, 30, 10))  # the upper half
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise by a quarter
    data = saved(upright.transpose(Image.Transpose.ROTATE_90), "PNG", exif=exif)
    found = Image.open(io.BytesIO(examine(data, "a.png").encoded))
    assert found.size == (30, 20) and not found.getexif()
    assert found.getpixel((15, 3)) == RED and found.getpixel((15, 16)) == (0, 0, 0)


def test_large_pictures_are_shrunk_and_small_ones_are_not():
    data = saved(Image.new("RGB", (640, 320), RED), "JPEG")
    found = examine(data, "a.jpg", max_side=100)
    assert found.kinds == ("shrunk",) and found.size == (640, 320)
    assert Image.open(io.BytesIO(found.encoded)).size == (100, 50)
    assert examine(data, "a.jpg", max_side=640).encoded == data


@pytest.mark.parametrize("progressive", [False, True])
def test_what_is_kept_of_damaged_files_decodes(decoder, progressive):
    """Cut off anywhere, or with wrong bytes anywhere: skipped, or the decoder takes it."""
    rng = np.random.default_rng(0)
    outcomes = {"kept": 0, "skipped": 0}
    for number in range(60):
        data = bytearray(saved(Image.open(io.BytesIO(photo(number))), "JPEG", progressive=progressive))
        if number % 2:
            data = data[: -int(rng.integers(1, len(data) // 2))]
        else:
            for place in rng.integers(2, len(data), 1 + number % 5):
                data[place] = rng.integers(256)
        try:
            found = examine(bytes(data), "a.jpg")
        except Unusable:
            outcomes["skipped"] += 1
        else:
            outcomes["kept"] += 1
            decoded(decoder, found.encoded)
    assert min(outcomes.values()) >= 5, outcomes


def test_wrong_bytes_anywhere_end_in_unusable_or_a_picture():
    """Whatever Pillow raises is noticed, for every format."""
    rng = np.random.default_rng(1)
    for name, (content, _) in FILES.items():
        if not 0 < len(content) < 10_000:
            continue
        for _ in range(15):
            data = bytearray(content)
            for place in rng.integers(0, len(data), 3):
                data[place] = rng.integers(256)
            try:
                examine(bytes(data), name)
            except Unusable as error:
                assert error.kind in KINDS
