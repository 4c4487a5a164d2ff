"""Writes a checkpoint's parameters as a file that Keras loads without Downpour.

    downpour export mine.py --checkpoint=runs/mine --out=mine.keras

`--checkpoint` is a checkpoint's folder, or a run's folder for its newest complete checkpoint. The recipe, with the
overrides it was trained with, defines the network; how it was trained and on how many shards does not matter here.
The ending of `--out` selects the format: `.keras` (the model), `.weights.h5` (its weights), `.h5` (the model, for
older Keras), or no ending for a folder, a SavedModel. The output is renamed into place when it is complete.

The model takes the input of the recipe's network, for a ResNet [B, S, S, 3] float32 in [-1, 1], and returns logits.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from absl import flags, logging

from downpour import files
from downpour.launch.job import Job, recipe, recipe_flags
from downpour.launch.job.build import build
from downpour.launch.roles import entry, initial
from downpour.launch.roles.command_line import Syntax
from downpour.model import weights
from downpour.model.own_objects import own_classes
from downpour.ps.checkpoint import restore
from downpour.ps.checkpoint.manifest import Checkpoint

SYNTAX = Syntax("recipe set checkpoint out average overwrite", positional="recipe")
_SAVED_MODEL_FILE = "saved_model.pb"
_KERAS_CONFIG = "config.json"
# One of these is in every file of weights: those of Keras 3 (its names have changed), and of Keras 2.
_HDF5_GROUPS = ("layers", "_layer_checkpoint_dependencies", "vars", "model_weights")


def main() -> None:
    """Writes the file."""
    define()
    entry.run(_run, role="export", syntax=SYNTAX)


def define() -> None:
    """Defines the flags."""
    recipe_flags.define()
    flags.DEFINE_string("checkpoint", None, "Folder of a checkpoint, or of a run: its newest complete checkpoint.")
    flags.DEFINE_string("out", None, "What to write: FILE.keras, FILE.weights.h5, FILE.h5, or a folder (SavedModel).")
    flags.DEFINE_boolean("average", False, "Whether the average of the parameters is written in their place.")
    flags.DEFINE_boolean("overwrite", False, "Whether something that is already there may be replaced.")


def _run() -> None:
    checkpoint, out = str(flags.FLAGS["checkpoint"].value or ""), str(flags.FLAGS["out"].value or "")
    missing = [flag for flag, value in (("--checkpoint", checkpoint), ("--out", out)) if not value]
    if missing:
        raise ValueError(f"export lacks {' and '.join(missing)}; give --checkpoint=FOLDER and --out=FILE")
    average, overwrite = bool(flags.FLAGS["average"].value), bool(flags.FLAGS["overwrite"].value)
    export(recipe.load(*recipe_flags.read()), checkpoint, out, average, overwrite)
    print(out)


def export(job: Job, checkpoint: str, out: str, average: bool = False, overwrite: bool = False) -> None:
    """Writes the job's model with the values of a checkpoint.

    Args:
        job: The trained job.
        checkpoint: Folder of a checkpoint, or of a run.
        out: Path; its ending selects the format.
        average: Whether the average of the parameters is written in their place.
        overwrite: Whether an earlier export at that path may be replaced.

    Raises:
        LayoutMismatch: The checkpoint is of another model.
        ValueError: The path is taken, cannot be written or has an unknown ending; the checkpoint cannot be read, or
            has no average.
    """
    ending = ending_of(out)
    _check_free(Path(out), ending, overwrite)
    saved = initial.load_checkpoint(checkpoint)
    model = _filled(job, saved, average)
    if ending in (weights.KERAS, weights.LEGACY) and (classes := own_classes(model)):
        logging.warning("Keras needs %s to load %s; a SavedModel needs no classes", ", ".join(classes), out)
    try:
        with _replacing(Path(out), ending) as temporary:
            weights.save(model, temporary, ending)
    except OSError as error:
        raise ValueError(f"cannot write --out={out}: {error}; give another --out") from None
    logging.info("wrote the %s of %s to %s", "average" if average else "parameters", saved.directory, out)


def ending_of(out: str) -> str:
    """Returns the format for the ending of `--out`, one of those that `weights.save` takes.

    Raises:
        ValueError: The ending is unknown.
    """
    ending = weights.file_ending(out)
    if ending is None and Path(out).suffix and not out.endswith("/"):
        raise ValueError(
            f"--out={out} has the ending {Path(out).suffix!r}; accepted are .keras, .weights.h5, .h5, and for a "
            "SavedModel a folder without an ending, or with / at its end"
        )
    return ending or weights.SAVED_MODEL


def _check_free(out: Path, ending: str, overwrite: bool) -> None:
    """Refuses an existing path, unless it is an export of the same kind and may be overwritten."""
    if not out.exists():
        return
    if not overwrite:
        raise ValueError(f"--out={out} is already there; give another, or add --overwrite")
    if not _is_export(out, ending):
        wanted = "SavedModel" if ending == weights.SAVED_MODEL else f"{ending} file of Keras"
        raise ValueError(f"--out={out} is already there and is no {wanted}, so it is not replaced; give another --out")


def _is_export(out: Path, ending: str) -> bool:
    """Whether a path holds what Keras writes for an ending, or an empty file."""
    if ending == weights.SAVED_MODEL:
        return (out / _SAVED_MODEL_FILE).is_file()
    if not out.is_file() or not out.stat().st_size:
        return out.is_file()
    if ending == weights.KERAS:
        if not zipfile.is_zipfile(out):
            return False
        with zipfile.ZipFile(out) as archive:
            return _KERAS_CONFIG in archive.namelist()
    import h5py  # type: ignore[import-untyped]

    if not h5py.is_hdf5(out):
        return False
    with h5py.File(out) as file:
        return any(group in file for group in _HDF5_GROUPS)


def _filled(job: Job, saved: Checkpoint, average: bool) -> Any:
    """Builds the job's model with a checkpoint's values."""
    model, layout = build(job)
    restore.check(saved, layout.variables)

    try:
        weights.assign(model, weights.named(saved, average))
    except ValueError as error:
        if average:
            raise ValueError(f"--average: {error}; without --average the parameters themselves are written") from None
        raise
    return model


@contextlib.contextmanager
def _replacing(out: Path, ending: str) -> Iterator[Path]:
    """As `files.replacing`; an earlier folder, which cannot be replaced in one step, is moved aside meanwhile."""
    out.parent.mkdir(parents=True, exist_ok=True)
    if not os.access(out.parent, os.W_OK | os.X_OK):
        raise PermissionError(f"folder {out.parent} is not writable")
    earlier = out.with_name(f".{out.name}.{secrets.token_hex(4)}.earlier")
    try:
        with files.replacing(out, ending=ending) as temporary:
            yield temporary
            if out.is_dir():
                out.rename(earlier)
    except BaseException:
        if earlier.exists():
            earlier.rename(out)
        raise
    files.remove(earlier)


if __name__ == "__main__":
    main()
