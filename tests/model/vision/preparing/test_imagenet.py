"""Tiny sets in the formats that ImageNet is published in."""

from __future__ import annotations

from pathlib import Path

import pytest

from downpour.model.vision.preparing.imagenet import ImageNet
from downpour.model.vision.preparing.items import Item, read_bytes
from tests.model.vision.preparing.tars import tar_of

WORDS = "n01440764 tench, Tinca tinca\nn02012849 crane\nn03126707 crane\n"
DEBIAN = Path("/usr/share/wordnet/data.noun")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Folders of synsets, and a flat one of validation pictures."""
    (tmp_path / "synset_words.txt").write_text(WORDS)
    for name in (
        "train/n03126707/n03126707_2.JPEG",
        "train/n03126707/n03126707_10.JPEG",
        "train/n01440764/n01440764_18.JPEG",
        "train/about.txt",
        *(f"val/ILSVRC2012_val_0000000{number}.JPEG" for number in (1, 3)),
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())
    return tmp_path


def labels_of(importer: ImageNet) -> dict[str, tuple[int, ...]]:
    return {item.name: item.labels for item in importer.items()}


def test_folders_are_synsets(folder: Path) -> None:
    (folder / "val.txt").write_text("ILSVRC2012_val_00000001.JPEG 2\nILSVRC2012_val_00000002.JPEG 0\n")
    importer = ImageNet(folder)
    assert list(importer.items()) == [
        Item("train/n01440764/n01440764_18.JPEG", str(folder / "train/n01440764/n01440764_18.JPEG"), (0,), "train"),
        Item("train/n03126707/n03126707_10.JPEG", str(folder / "train/n03126707/n03126707_10.JPEG"), (2,), "train"),
        Item("train/n03126707/n03126707_2.JPEG", str(folder / "train/n03126707/n03126707_2.JPEG"), (2,), "train"),
        Item("val/ILSVRC2012_val_00000001.JPEG", str(folder / "val/ILSVRC2012_val_00000001.JPEG"), (2,), "heldout"),
    ]
    assert set(importer.skipped) == {"train/about.txt", "val/ILSVRC2012_val_00000003.JPEG"}
    assert importer.tree.names == ("tench", "crane (n02012849)", "crane (n03126707)")
    assert not any(importer.tree.parents)


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("val.txt", "ILSVRC2012_val_00000003.JPEG 1\nILSVRC2012_val_00000001.JPEG 0\n"),
        ("imagenet_2012_validation_synset_labels.txt", "n01440764\nn03126707\nn02012849\n"),
        ("ILSVRC2012_validation_ground_truth.txt", "490\n7\n361\n"),
        (
            "LOC_val_solution.csv",
            "ImageId,PredictionString\nILSVRC2012_val_00000003,n02012849 85 1 499 272 n02012849 1 2 3 4\n"
            "ILSVRC2012_val_00000001,n01440764 1 2 3 4\n",
        ),
    ],
)
def test_every_list_of_validation_labels_is_read(folder: Path, file: str, content: str) -> None:
    (folder / file).write_text(content)
    (folder / "map_clsloc.txt").write_text("n03126707 7 crane\nn02012849 361 crane\nn01440764 490 tench\n")
    found = labels_of(ImageNet(folder))
    assert found["val/ILSVRC2012_val_00000001.JPEG"] == (0,)
    assert found["val/ILSVRC2012_val_00000003.JPEG"] == (1,)


def test_tar_files_are_read_as_they_are(tmp_path: Path) -> None:
    (tmp_path / "LOC_synset_mapping.txt").write_text(WORDS)
    tench = tar_of({"n01440764_18.JPEG": b"tench"})
    (tmp_path / "ILSVRC2012_img_train.tar").write_bytes(tar_of({"n01440764.tar": tench}))
    (tmp_path / "ILSVRC2012_img_val.tar").write_bytes(tar_of({"ILSVRC2012_val_00000001.JPEG": b"a crane"}))
    (tmp_path / "val.txt").write_text("ILSVRC2012_val_00000001.JPEG 1\n")
    items = list(ImageNet(tmp_path).items())
    assert [(item.name, item.labels, item.split, read_bytes(item.path)) for item in items] == [
        ("ILSVRC2012_img_train.tar#n01440764.tar#n01440764_18.JPEG", (0,), "train", b"tench"),
        ("ILSVRC2012_img_val.tar#ILSVRC2012_val_00000001.JPEG", (1,), "heldout", b"a crane"),
    ]


def test_tar_files_of_a_synset_each_in_a_folder_and_no_validation_set(tmp_path: Path) -> None:
    (tmp_path / "synset_words.txt").write_text(WORDS)
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "n02012849.tar").write_bytes(tar_of({"one.JPEG": b"", "two.JPEG": b""}))
    items = list(ImageNet(tmp_path).items())
    assert [(item.name, item.labels, item.split) for item in items] == [
        (f"train/n02012849.tar#{name}.JPEG", (1,), "") for name in ("one", "two")
    ]


def nouns(synsets: dict[str, list[str]]) -> tuple[bytes, dict[str, str]]:
    """A file in the format of WordNet's data.noun (wndb(5WN)) of words and their hypernyms, and the synset of each."""
    head, lengths = b"  1 This software and database is being provided to you.\n", {}
    for word, above in synsets.items():
        lengths[word] = len(line(word, 0, [0] * len(above)))
    starts = {word: len(head) + sum(list(lengths.values())[:at]) for at, word in enumerate(lengths)}
    lines = (line(word, starts[word], [starts[each] for each in above]) for word, above in synsets.items())
    return head + b"".join(lines), {word: f"n{start:08}" for word, start in starts.items()}


def line(word: str, start: int, above: list[int]) -> bytes:
    pointers = "".join(f"{'@i' if number else '@'} {each:08} n 0000 " for number, each in enumerate(above))
    other = f"+ 00692347 v 0101 {pointers}~ 00023100 n 0000 "
    text = f'{start:08} 03 n 02 {word} 0 another_word 1 {len(above) + 2:03} {other}| a gloss | of {word}; "@ 1"  \n'
    return text.encode()


def test_wordnet_gives_the_tree(folder: Path) -> None:
    content, synset = nouns({"entity": [], "living_thing": ["entity"], "fish": ["living_thing"], "food": ["entity"],
                             "tench": ["fish", "food"], "crane": ["entity"]})  # fmt: skip
    (folder / "data.noun").write_bytes(content)
    (folder / "synset_words.txt").write_text(f"{synset['crane']} crane\n{synset['tench']} tench, Tinca tinca\n")
    tree = ImageNet(folder).tree
    assert tree.names == ("crane", "tench", "entity", "fish", "food", "living thing")
    assert tree.parents == ((2,), (3, 4), (), (5,), (2,), (2,))
    (folder / "synset_words.txt").write_text(WORDS)
    with pytest.raises(ValueError, match=r"data\.noun: no synset at byte 01440764, where n01440764 is in WordNet 3\.0"):
        _ = ImageNet(folder).tree


@pytest.mark.skipif(not DEBIAN.exists(), reason="Debian's wordnet-base is not installed")
def test_debians_wordnet_gives_the_tree(folder: Path) -> None:
    tree = ImageNet(folder, tree=DEBIAN).tree
    assert {"tench", "wading bird", "lifting device", "fish", "entity"} <= set(tree.names)
    assert tree.depth > 10


def test_a_list_of_pairs_gives_the_tree(folder: Path) -> None:
    pairs = "n00000001 n01440764\nn00000002 n00000001\nn00000003 n01440764\nn00000008 n00000009\n"
    (folder / "wordnet.is_a.txt").write_text(pairs)
    tree = ImageNet(folder).tree
    assert tree.names[3:] == ("n00000001", "n00000003", "n00000002")
    assert tree.parents == ((3, 4), (), (), (5,), (), ())


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        (
            "synset_words.txt",
            "n01440764 tench\n1440764 crane\n",
            "line 2: '1440764 crane'; give a synset and its words",
        ),
        ("synset_words.txt", "n01440764 tench\nn01440764 crane\n", "line 2: synset n01440764 occurs twice"),
        ("synset_words.txt", "n01440764 tench\n", "n03126707_10.JPEG: synset n03126707 is not in"),
        ("val.txt", "a.JPEG 0\nb.JPEG 3\n", "line 2: synset '3' is not in"),
        ("imagenet_2012_validation_synset_labels.txt", "n01440764\n\n", "line 2: synset '' is not in"),
        ("LOC_val_solution.csv", "ImageId,Prediction\n", "line 1: column PredictionString is missing"),
        ("ILSVRC2012_validation_ground_truth.txt", "490\n", "map_clsloc.txt, which is missing"),
        ("wordnet.is_a.txt", "n00000001 n01440764 n3\n", "line 1: 'n00000001 n01440764 n3'; give a parent and a child"),
        ("wordnet.is_a.txt", "n00000001 n01440764\nn01440764 n00000001\n", '"tench" -> "n00000001" -> "tench"'),
        ("train/n01440764.tar", "nothing of the kind", "is not an uncompressed tar file"),
    ],
)
def test_a_mistake_is_named_by_file_and_line(folder: Path, file: str, content: str, message: str) -> None:
    (folder / file).write_text(content)
    importer = ImageNet(folder)
    with pytest.raises(ValueError) as raised:
        _ = importer.tree, list(importer.items())
    assert message in str(raised.value)
    assert str(folder) in str(raised.value)
    assert "\n" not in str(raised.value)


def test_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"has no synset_words\.txt or LOC_synset_mapping\.txt"):
        ImageNet(tmp_path)
    (tmp_path / "synset_words.txt").write_text(WORDS)
    with pytest.raises(ValueError, match=r"has none of train, train\.tar"):
        list(ImageNet(tmp_path).items())
