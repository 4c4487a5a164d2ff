"""Writes the features of a folder of pictures: what a trained network computes below its head.

    downpour features photos --recipe=r.py --checkpoint=runs/r --out=f.npz
    downpour probe f.npz

The folder holds prepared records, or plain pictures in folders that are their labels, read as `downpour prepare folder`
reads them: awkward pictures, nested folders and splits mean the same. `--checkpoint` is a checkpoint, a run's
folder for its newest, or a file of Keras; the recipe, with the overrides it was trained with, defines the network and
how pictures are resized and cropped. A `.keras` or `.h5` file needs no recipe: it is a network for pictures in [-1, 1].

`--layer` is a layer's name, `conv2` to `conv5` for the last of a residual network's stage, or `pooled`, what the head
takes. Maps are averaged over their positions; with `--nopool` they are written whole. The ending of `--out` selects
the format, `.parquet` or `.npz` (`downpour.model.vision.feature_files`). Memory does not grow with the pictures.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from absl import flags, logging

from downpour.launch.job import Job, recipe, recipe_flags
from downpour.launch.job.build import build
from downpour.launch.roles import entry, initial
from downpour.launch.roles.command_line import Syntax
from downpour.model import weights
from downpour.model.vision import extracting, feature_files
from downpour.model.vision.feature_files import About
from downpour.model.vision.picture_folder import PictureFolder
from downpour.model.vision.records import RecordCounts

SYNTAX = Syntax("data recipe set checkpoint layer pool out batch_size", positional="data")


@dataclass(frozen=True)
class FeaturesConfig:
    """What to compute.

    Attributes:
        data: Folder of pictures.
        checkpoint: A checkpoint, a run's folder, or a file of Keras.
        out: File to write.
        job: The job that defines the network; None for that of a Keras file.
        layer: Layer whose output is written; see `extracting.network`.
        pool: Whether maps are averaged over their positions.
        batch_size: Pictures in one call.
    """

    data: Path
    checkpoint: str
    out: Path
    job: Job | None = None
    layer: str = extracting.POOLED
    pool: bool = True
    batch_size: int = 64

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f"--batch_size={self.batch_size}; give a whole number of at least 1")
        if self.job is None and weights.file_ending(self.checkpoint) not in (weights.KERAS, weights.LEGACY):
            raise ValueError(
                f"--checkpoint={self.checkpoint} has no network of its own; give --recipe, or a .keras or .h5 file"
            )
        if self.job is not None and not all(hasattr(self.job.data, name) for name in ("resize", "crop")):
            raise ValueError(
                f"the data of {self.job.name} are {type(self.job.data).__name__}, which do not say how a picture is "
                "resized and cropped; give a recipe whose data are ImageRecords, or a .keras file without a recipe"
            )


def main() -> None:
    """Writes the file."""
    define()
    entry.run(lambda: print(run(from_flags())), role="features", syntax=SYNTAX)


def define() -> None:
    """Defines the flags."""
    recipe_flags.define()
    flags.DEFINE_string("data", None, "Folder of pictures: prepared records, or files in folders that are labels.")
    flags.DEFINE_string("checkpoint", None, "A checkpoint's folder, a run's for its newest one, or a file of Keras.")
    flags.DEFINE_string("layer", extracting.POOLED, "Layer whose output is written: pooled, conv2 to conv5, or a name.")
    flags.DEFINE_boolean("pool", True, "Whether maps are averaged over their positions.")
    flags.DEFINE_string("out", None, "File to write, .parquet or .npz.")
    flags.DEFINE_integer("batch_size", 64, "Pictures computed at a time.")


def from_flags() -> FeaturesConfig:
    """Returns the configuration of the command line."""
    given = flags.FLAGS.flag_values_dict()
    missing = [f"--{name}" for name in ("data", "checkpoint", "out") if not given[name]]
    if missing:
        raise ValueError(f"features lacks {' and '.join(missing)}; give FOLDER --checkpoint=RUN --out=FILE")
    job = recipe.load(*recipe_flags.read()) if given["recipe"] or given["set"] else None
    data, out = Path(given["data"]), Path(given["out"])
    return FeaturesConfig(data, given["checkpoint"], out, job, given["layer"], given["pool"], given["batch_size"])


def run(config: FeaturesConfig) -> str:
    """Writes the features.

    Returns:
        One line that says what was written.

    Raises:
        ValueError: Folder, checkpoint, layer or output cannot be used, the checkpoint is of another network, or no
            picture can be read.
    """
    feature_files.check_ending(config.out)
    pictures = PictureFolder(config.data)
    initial.check(initial.Source(config.checkpoint))
    net, layer, resize, crop = _network(config)
    about = About.of(layer, net.output_shape[1:], config.checkpoint, pictures.tree)
    counts = RecordCounts(judge_after=None)
    number = 0
    try:
        with feature_files.writing(config.out, about) as writer:
            named = pictures.decoded(resize, crop, counts)
            for members, values in extracting.features(net, named, config.batch_size):
                writer.add(
                    [m.name for m in members], [m.split for m in members], [m.picture.labels for m in members], values
                )
                number += len(members)
            if not number:
                raise ValueError(f"no picture in {config.data} can be read; for example: {'; '.join(counts.examples)}")
    except OSError as error:
        raise ValueError(f"features of {config.data} cannot be written to {config.out}: {error}") from None
    if counts.skipped:
        logging.warning("%d pictures cannot be read: %s", counts.skipped, "; ".join(counts.examples))
    size = " x ".join(map(str, about.shape))
    return f"wrote {size} features of {number} pictures, output of {layer}, to {config.out}; {counts.skipped} skipped"


def _network(config: FeaturesConfig) -> tuple[Any, str, int, int]:
    """The network with its values, the layer's name, and the sides of resized and of cropped pictures."""
    if config.job is None:
        return _of_keras_file(config)
    model, _ = build(config.job)
    net, layer = extracting.network(model, config.layer, config.pool)
    _fill(net, config.checkpoint)
    data: Any = config.job.data
    return net, layer, data.resize, data.crop


def _of_keras_file(config: FeaturesConfig) -> tuple[Any, str, int, int]:
    import keras

    try:
        model = keras.saving.load_model(config.checkpoint, compile=False)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{config.checkpoint} cannot be loaded by Keras: {error}; give another file") from None
    shape = getattr(model, "input_shape", None)
    if not isinstance(shape, tuple) or len(shape) != 4 or shape[1] is None or (shape[1], shape[3]) != (shape[2], 3):
        raise ValueError(f"the network of {config.checkpoint} takes {shape}; give one that takes images [B, S, S, 3]")
    net, layer = extracting.network(model, config.layer, config.pool)
    return net, layer, shape[1], shape[1]


def _fill(net: Any, path: str) -> None:
    """Assigns the values of a checkpoint to the variables of a network; other layers of it do not matter.

    Raises:
        ValueError: A value is missing there, or has another shape.
    """
    from downpour.worker.step.variables import variables_of

    wanted = variables_of(net)
    found = initial.read(path, net, {variable.name for variable in wanted})
    if wrong := initial.differences(wanted, found):
        raise ValueError(
            f"--checkpoint={path} is of another network than the recipe's, {len(wrong)} of {len(wanted)} variables "
            f"differ: {wrong[0]}; give the recipe, and its overrides, that it was trained with"
        )
    weights.assign(net, found)


if __name__ == "__main__":
    main()
