from __future__ import annotations

import json

import numpy as np
import pytest

from downpour.model.data import ImageRecords
from downpour.model.vision import openmoji
from downpour.model.vision.openmoji import Emoji, heldout_bases, label_tree, prepare, read_emoji

SKIN_TONES = {"1F3FB", "1F3FC", "1F3FD", "1F3FE", "1F3FF", "FE0F"}


@pytest.fixture(scope="module")
def emoji() -> list[Emoji]:
    return read_emoji()


@pytest.fixture
def few(monkeypatch, emoji) -> None:
    """Every tenth emoji, so that preparing takes half a second."""
    monkeypatch.setattr(openmoji, "read_emoji", lambda: emoji[::10])


def test_unicode_list_is_read_in_full(emoji):
    assert len(emoji) == 3944
    assert emoji[0] == Emoji(("1F600",), "Smileys & Emotion", "face-smiling", "grinning face")
    assert len({each.group for each in emoji}) == 9
    assert len({each.subgroup for each in emoji}) == 98


@pytest.mark.parametrize(
    ("name", "base"),
    [
        ("woman: medium-light skin tone, red hair", "woman: red hair"),
        ("woman: red hair", "woman: red hair"),
        ("kiss: person, person, light skin tone, dark skin tone", "kiss"),
        ("kiss: woman, man, light skin tone, dark skin tone", "kiss: woman, man"),
        ("handshake: medium skin tone, dark skin tone", "handshake"),
        ("flag: France", "flag: France"),
        ("grinning face", "grinning face"),
    ],
)
def test_base_is_the_name_without_skin_tones(name, base):
    assert Emoji((), "", "", name).base == base


def test_skin_tone_variants_never_straddle_the_split(emoji):
    """Checked by code points, where the split goes by names."""
    bases = heldout_bases(emoji)
    sides: dict[tuple[str, ...], set[bool]] = {}
    for each in emoji:
        plain = tuple(point for point in each.code_points if point not in SKIN_TONES)
        sides.setdefault(plain, set()).add(each.base in bases)
    assert all(len(side) == 1 for side in sides.values())
    assert {len(side) for side in sides.values()} == {1}
    assert len(sides) < 2000


def test_couples_of_two_tones_stay_with_their_plain_emoji(emoji):
    for name in ("handshake", "kiss", "couple with heart", "people with bunny ears"):
        variants = [each for each in emoji if each.name.startswith(name) and each.base == name]
        assert len(variants) == 26, name


def test_a_fifth_is_held_out_in_every_larger_subgroup(emoji):
    bases = heldout_bases(emoji)
    assert 0.17 < np.mean([each.base in bases for each in emoji]) < 0.23
    for subgroup in {each.subgroup for each in emoji}:
        members = {each.base for each in emoji if each.subgroup == subgroup}
        assert abs(len(members & bases) - len(members) / 5) <= 1


def test_labels_form_a_cleaned_tree(emoji):
    tree = label_tree(emoji)
    assert 100 <= len(tree) <= 200
    depths = {len(lineage) for lineage in tree.lineages}
    assert depths == {1, 2, 3}
    for label, name in enumerate(tree.names):
        assert [name.rpartition(" > ")[0]] == ([tree.names[parent] for parent in tree.parents[label]] or [""])
    assert "Food & Drink > food-fruit" in tree.names
    assert not any("skin tone" in name or name.endswith("> with") for name in tree.names)


def test_rare_labels_are_dropped_and_so_are_words_that_say_nothing_new():
    common = [Emoji((), "Things", "tools", f"hammer {word}") for word in "ab cd ef gh ij kl mn op qr st uv wx".split()]
    rare = [Emoji((), "Things", "rocks", "stone")]
    assert label_tree([*common, *rare]).names == ("Things", "Things > tools")


@pytest.mark.usefixtures("few")
def test_prepared_folder_is_a_data_set_with_credit(tmp_path):
    folder = tmp_path / "data" / "openmoji"
    summary = prepare(folder)
    assert f"prepared {folder}" in summary
    facts = json.loads((folder / "dataset.json").read_text())
    assert "CC BY-SA 4.0" in facts["credit"]
    assert facts["license"].startswith("https://creativecommons.org/")
    assert facts["num_train"] + facts["num_heldout"] == 395
    data = ImageRecords(folder, num_labels=facts["num_labels"], resize=36, crop=32)
    data.check()
    with data.heldout(batch_size=1000) as batches:
        images, labels = next(batches)
    images = np.asarray(images)
    assert len(images) == facts["num_heldout"] == batches.counts.read
    assert labels.sum(axis=1).min() >= 0
    assert np.mean(images[:, 0, 0] > 0.95) > 0.9, "corners should be white"
    assert images.std() > 0.3, "pictures should not be blank"


@pytest.mark.usefixtures("few")
def test_preparing_again_changes_nothing(tmp_path):
    folder = tmp_path / "openmoji"
    prepare(folder)
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert prepare(folder).startswith(f"{folder} is prepared already: ")
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before
    assert list(tmp_path.iterdir()) == [folder]


@pytest.mark.usefixtures("few")
def test_an_interrupted_preparation_leaves_nothing(tmp_path, monkeypatch):
    calls = []

    def interrupted(*_):
        calls.append(1)
        if len(calls) == 50:
            raise KeyboardInterrupt
        return b"png"

    monkeypatch.setattr(openmoji, "render", interrupted)
    with pytest.raises(KeyboardInterrupt):
        prepare(tmp_path / "openmoji")
    assert len(calls) == 50
    assert list(tmp_path.iterdir()) == []


def test_a_folder_of_other_things_is_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(ValueError, match="exists and is not a prepared data set"):
        prepare(tmp_path)
    assert (tmp_path / "thesis.txt").read_text() == "precious"


@pytest.mark.usefixtures("few")
def test_an_empty_folder_is_filled(tmp_path):
    (tmp_path / "openmoji").mkdir()
    assert "prepared" in prepare(tmp_path / "openmoji")


def test_a_missing_package_names_the_extra():
    with pytest.raises(ValueError, match=r"no_such_package.*downpour-training\[quickstart\]"):
        openmoji._package("no_such_package")
