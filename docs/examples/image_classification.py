"""An image folder, after "Image classification from scratch" of keras.io.

A small Xception with batch norm, augmentation and dropout inside the model tells faces, food, flags and so on apart.
Data: OpenMoji pictures (CC BY-SA 4.0), drawn into `FOLDER/PART/CLASS/NAME.png` at first use. A folder of your own that
has parts `train` and `heldout` will do: change `FOLDER`, `CLASSES` and `NUM_TRAIN`.

    downpour local --recipe=docs/examples/image_classification.py
"""

import os
from pathlib import Path
from typing import Any

import numpy as np

from downpour.launch.job import Cluster, Exchange, Job
from downpour.model.data import Examples
from downpour.ps.rules import KerasAdam
from downpour.ps.schedules import KerasCosine

FOLDER = Path("data/openmoji_folder")
CLASSES = (
    "Activities", "Animals & Nature", "Flags", "Food & Drink", "Objects", "People & Body", "Smileys & Emotion",
    "Symbols", "Travel & Places",
)  # fmt: skip
SIDE = 40
NUM_TRAIN, BATCH, EPOCHS = 1531, 32, 15
STEPS = EPOCHS * NUM_TRAIN // BATCH


class Pictures:
    """The pictures of a part; an item is (picture [SIDE, SIDE, 3] uint8, number of its class)."""

    def __init__(self, part: str) -> None:
        """Lists the files; each is opened when it is read."""
        if not FOLDER.is_dir():
            _draw()
        self._files = [(file, i) for i, name in enumerate(CLASSES) for file in sorted((FOLDER / part / name).iterdir())]

    def __len__(self) -> int:
        """Number of pictures."""
        return len(self._files)

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        """Reads a picture."""
        from PIL import Image

        path, label = self._files[index]
        with Image.open(path) as image:
            return np.asarray(image.convert("RGB").resize((SIDE, SIDE))), label


def training() -> Pictures:
    """The training pictures."""
    return Pictures("train")


def heldout() -> Pictures:
    """The held-out ones."""
    return Pictures("heldout")


def model() -> Any:
    """The compiled model."""
    import keras
    from keras import layers

    inputs = keras.Input((SIDE, SIDE, 3))
    x = layers.RandomFlip("horizontal")(inputs)
    x = layers.RandomRotation(0.05)(x)
    x = layers.Rescaling(1 / 127.5, offset=-1)(x)
    x = layers.Conv2D(24, 3, strides=2, padding="same", use_bias=False)(x)
    x = layers.Activation("relu")(layers.BatchNormalization(momentum=0.9)(x))
    for size in (48, 96):
        before = layers.Conv2D(size, 1, strides=2, padding="same")(x)
        for _ in range(2):
            x = layers.SeparableConv2D(size, 3, padding="same", use_bias=False)(x)
            x = layers.Activation("relu")(layers.BatchNormalization(momentum=0.9)(x))
        x = layers.Add()([layers.MaxPooling2D(3, strides=2, padding="same")(x), before])
    x = layers.Dropout(0.25)(layers.GlobalAveragePooling2D()(x))
    built = keras.Model(inputs, layers.Dense(len(CLASSES))(x), name="small_xception")
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    optimizer = keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(1e-3, STEPS))
    built.compile(optimizer, loss, metrics=["accuracy"])
    return built


def job() -> Job:
    """The job; see the module."""
    return Job(
        name="image_classification",
        model=model,
        data=Examples(training, heldout),
        loss=None,  # the compiled model's
        rule=KerasAdam(),
        schedule=KerasCosine(1e-3, STEPS),
        num_steps=STEPS,
        batch_size=BATCH,
        cluster=Cluster(num_ps=3, num_workers=2, threads_per_worker=1),
        exchange=Exchange(codec="float32", overlap=False),
        checkpoint_every_steps=5 * NUM_TRAIN // BATCH,
    )


def _draw() -> None:
    """Draws OpenMoji: one picture of each name, every fifth one held out; the folder is complete or absent."""
    from downpour.model.vision import openmoji

    emoji = openmoji.read_emoji()
    art = openmoji.art_of(emoji)
    chosen = {each.base: each for each in reversed(emoji) if each.group in CLASSES and each.code_points in art}
    unfinished = FOLDER.with_name(f"{FOLDER.name}.{os.getpid()}")
    for i, name in enumerate(sorted(chosen)):
        folder = unfinished / ("heldout" if i % 5 == 0 else "train") / chosen[name].group
        folder.mkdir(parents=True, exist_ok=True)
        file = art[chosen[name].code_points]
        (folder / f"{file.stem}.png").write_bytes(openmoji.render(file, SIDE))
    unfinished.rename(FOLDER)
