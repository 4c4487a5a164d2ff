"""Real pictures as prepared folders: scikit-learn's digits, and Fashion-MNIST of Debian's dataset-fashion-mnist."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from downpour.model.vision.labels import LABELS_FILE, LabelTree
from downpour.model.vision.records import LabelledImage, write_records


def digits() -> tuple[np.ndarray, np.ndarray]:
    """1,797 handwritten digits of scikit-learn: pixels [n, 32, 32] uint8, white on black, and classes [n].

    They are 8 x 8 pixels of 17 levels; enlarged here, as a network for larger pictures needs.
    """
    from PIL import Image
    from sklearn.datasets import load_digits

    loaded = load_digits()
    pixels = (loaded.images * (255 / 16)).round().astype(np.uint8)
    side = (32, 32)
    return np.stack([np.asarray(Image.fromarray(one).resize(side, Image.Resampling.BICUBIC)) for one in pixels]), (
        loaded.target.astype(int)
    )


def png(pixels: np.ndarray) -> bytes:
    """One picture, [H, W] uint8, as a PNG file."""
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "png")
    return file.getvalue()


def write(
    folder: Path, pixels: np.ndarray, classes: np.ndarray, train: Sequence[int], heldout: Sequence[int], names: str
) -> Path:
    """Writes pictures [n, H, W] of exclusive classes as a prepared folder; returns it.

    Args:
        folder: New folder.
        pixels: All pictures.
        classes: The class of each.
        train: Numbers of those to train on.
        heldout: Numbers of those that are held out.
        names: Names of the classes, with blanks between.
    """
    folder.mkdir(parents=True)
    for split, numbers in (("train", train), ("heldout", heldout)):
        images = (LabelledImage(png(pixels[i]), (int(classes[i]),), f"{split}-{i}") for i in numbers)
        write_records(folder / f"{split}-00000-of-00001.tfrecord", images)
    labels = tuple(names.split())
    LabelTree(labels, (-1,) * len(labels)).save(folder / LABELS_FILE)
    return folder
