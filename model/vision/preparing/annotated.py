"""Writes a densely annotated held-out set: pictures to score alone, and the classes that were annotated in them.

In `out` are then `heldout-NNNNN-of-MMMMM.tfrecord`, `labels.json`, which is that of the training set, and
`annotated.json`, as `downpour.model.data.ImageRecords` reads them for a set of a job's `validation_sets`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from downpour.files import replacing
from downpour.model.vision import scored_classes
from downpour.model.vision.labels import LABELS_FILE, LabelTree
from downpour.model.vision.preparing import pictures
from downpour.model.vision.preparing.items import Importer, Item, read_bytes
from downpour.model.vision.records import LabelledImage, write_records
from downpour.model.vision.scored_classes import ANNOTATED_FILE

_IMAGES_PER_FILE = 1000
_SHOWN = 5  # pictures left out that the summary names


def prepare(importer: Importer, out: Path, classes: Path | None = None, max_side: int = 0) -> str:
    """Writes all pictures that an importer lists, whatever their split, to a folder that appears when it is complete.

    Args:
        importer: Lists pictures and labels; its tree is that of the training set.
        out: Folder that does not exist yet, or is empty.
        classes: JSON list of the names of the classes that were annotated; None: those that a picture carries,
            ancestors included.
        max_side: See `pictures.examine`.

    Returns:
        A line that describes the set; it names the first few pictures that were left out, and why.

    Raises:
        ValueError: `out` holds something, there are no pictures, a picture has a label that was not annotated, a table
            cannot be used, or Pillow is not installed.
    """
    pictures.check_installed()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out} exists already; name a new folder, or empty this one")
    tree, items = importer.tree, list(importer.items())
    if not items:
        raise ValueError("there are no pictures to write; give a table or folder that lists some")
    chosen = _classes(tree, items, classes)
    skipped: dict[str, str] = dict(importer.skipped)
    out.parent.mkdir(parents=True, exist_ok=True)
    with replacing(out) as unfinished:
        unfinished.mkdir()
        num_written = _write(unfinished, items, max_side, skipped)
        if not num_written:
            raise ValueError(f"none of {len(items)} pictures can be used; for example {_reasons(skipped)}")
        tree.save(unfinished / LABELS_FILE)
        names = [tree.names[label] for label in chosen]
        text = json.dumps(names, ensure_ascii=False, indent=0) + "\n"
        (unfinished / ANNOTATED_FILE).write_text(text, encoding="utf-8")
    labels = sum(len(tree.with_ancestors(item.labels)) for item in items if item.name not in skipped)
    left_out = f"; {len(skipped)} left out: {_reasons(skipped)}" if skipped else ""
    return (
        f"prepared {out}: {num_written} held-out pictures, {len(chosen)} of {len(tree)} classes annotated, "
        f"{labels / num_written:.1f} labels a picture{left_out}"
    )


def _classes(tree: LabelTree, items: Sequence[Item], path: Path | None) -> list[int]:
    carried = {label for item in items for label in item.labels}
    if path is None:
        return sorted(tree.with_ancestors(carried))
    chosen = scored_classes.read(tree, path).annotated
    assert chosen is not None
    found = chosen.tolist()
    for item in items:
        if extra := set(item.labels).difference(found):
            name = tree.names[min(extra)]
            raise ValueError(
                f"{item.name} has the label {name!r}, which {path} does not list; add it, or drop it there"
            )
    return found


def _write(folder: Path, items: Sequence[Item], max_side: int, skipped: dict[str, str]) -> int:
    num_files = -(-len(items) // _IMAGES_PER_FILE)
    written = 0
    for number in range(num_files):
        part = items[number * _IMAGES_PER_FILE : (number + 1) * _IMAGES_PER_FILE]
        path = folder / f"heldout-{number:05d}-of-{num_files:05d}.tfrecord"
        written += write_records(path, _images(part, max_side, skipped))
    return written


def _images(items: Sequence[Item], max_side: int, skipped: dict[str, str]) -> Iterator[LabelledImage]:
    for item in items:
        try:
            found = pictures.examine(read_bytes(item.path), os.path.basename(item.path), max_side)
        except OSError as error:
            skipped[item.name] = f"the file cannot be read: {error.strerror or error}"
        except pictures.Unusable as error:
            skipped[item.name] = str(error)
        else:
            yield LabelledImage(found.encoded, item.labels, item.name)


def _reasons(skipped: dict[str, str]) -> str:
    return "; ".join(f"{name}: {reason}" for name, reason in list(skipped.items())[:_SHOWN])
