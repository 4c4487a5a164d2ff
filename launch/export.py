"""`downpour export`: writes a checkpoint's parameters as a file that Keras loads without Downpour.

    downpour export --checkpoint=runs/quickstart --recipe=quickstart --out=quickstart.keras

`--checkpoint` is a checkpoint's folder, or a run's folder for its newest complete checkpoint. The recipe, with the
overrides it was trained with, defines the network; how it was trained and on how many shards does not matter here.
The ending of `--out` selects the format: `.keras` (the model), `.weights.h5` (its weights), `.h5` (the model, for
older Keras), or no ending for a folder, a SavedModel. The output is renamed into place when it is complete.

The model takes the input of the recipe's network, for a ResNet [B, S, S, 3] float32 in [-1, 1], and returns logits.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from absl import flags, logging

from downpour.launch.job import Job, recipe, recipe_flags
from downpour.launch.job.build import build
from downpour.launch.roles import entry, initial
from downpour.model import weights
from downpour.ps.checkpoint import restore
from downpour.ps.checkpoint.manifest import Checkpoint

_SAVED_MODEL_FILE = "saved_model.pb"


def main() -> None:
    """Writes the file."""
    recipe_flags.define()
    flags.DEFINE_string("checkpoint", None, "Folder of a checkpoint, or of a run: its newest complete checkpoint.")
    flags.DEFINE_string("out", None, "What to write: FILE.keras, FILE.weights.h5, FILE.h5, or a folder (SavedModel).")
    flags.DEFINE_boolean("average", False, "Whether the average of the parameters is written in their place.")
    flags.DEFINE_boolean("overwrite", False, "Whether something that is already there may be replaced.")
    entry.run(_run, role="export")


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
    if ending in (weights.KERAS, weights.LEGACY) and (classes := weights.own_classes(model)):
        logging.warning("Keras needs %s to load %s; a SavedModel needs no classes", ", ".join(classes), out)
    try:
        with _appears_complete(Path(out)) as temporary:
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
    is_folder = ending == weights.SAVED_MODEL
    if out.is_dir() != is_folder or (is_folder and not (out / _SAVED_MODEL_FILE).exists()):
        wanted = "SavedModel" if is_folder else "file"
        raise ValueError(f"--out={out} is already there and is no {wanted}, so it is not replaced; give another --out")


def _filled(job: Job, saved: Checkpoint, average: bool) -> Any:
    """Builds the job's model with a checkpoint's values."""
    model, layout = build(job)
    restore.check(saved, layout.variables)

    from downpour.worker.evaluator import evaluator

    try:
        evaluator.fill(model, layout, saved, average)
    except ValueError as error:
        if average:
            raise ValueError(f"--average: {error}; without --average the parameters themselves are written") from None
        raise
    return model


@contextlib.contextmanager
def _appears_complete(out: Path) -> Iterator[Path]:
    """Yields a temporary path with the same ending; renames it when the block succeeds, removes it when it does not."""
    out.parent.mkdir(parents=True, exist_ok=True)
    if not os.access(out.parent, os.W_OK | os.X_OK):
        raise PermissionError(f"folder {out.parent} is not writable")
    temporary, earlier = (out.with_name(f".{os.getpid()}.{word}.{out.name}") for word in ("part", "earlier"))
    try:
        yield temporary
        if out.is_dir():  # a folder cannot be replaced in one step
            out.rename(earlier)
        temporary.replace(out)
    finally:
        _remove(temporary)
    _remove(earlier)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


if __name__ == "__main__":
    main()
