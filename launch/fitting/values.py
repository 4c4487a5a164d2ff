"""Assigns the values of a run's checkpoints to models of this process.

Keras with the TensorFlow backend is imported on use.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from downpour.launch.local import RunConfig
from downpour.ps.checkpoint import manifest as checkpoint
from downpour.ps.checkpoint.manifest import Checkpoint
from downpour.ps.checkpoint.storage import Folder

if TYPE_CHECKING:
    import keras


def assign(model: keras.Model, saved: Checkpoint, config: RunConfig) -> None:
    """Assigns a checkpoint's values; where the job keeps an average, it is that of the trained variables."""
    from downpour.model import weights
    from downpour.worker.step.variables import values_in

    weights.assign(model, values_in(model, saved))
    if config.job.average is not None:  # as Keras' `use_ema`: of trained variables only
        trained = {variable.path for variable in model.trainable_variables}
        average = values_in(model, saved, average=True)
        weights.assign(model, {name: value for name, value in average.items() if name in trained})


def assign_epoch(model: keras.Model, row: Mapping[str, Any], config: RunConfig) -> None:
    """Assigns an epoch's checkpoint: the next one, where it is removed meanwhile."""
    while directory := _checkpoint_of(row, config):
        try:
            return assign(model, checkpoint.load(directory), config)
        except (ValueError, OSError):
            if _checkpoint_of(row, config) == directory:
                raise


def _checkpoint_of(row: Mapping[str, Any], config: RunConfig) -> str:
    """Folder of the first checkpoint at or after an epoch's end that is still there; "" without any."""
    folder = Folder(config.checkpoints.of(config.folder))
    names = [name for name in checkpoint.complete(folder) if int(name.removeprefix("step-")) >= row["step"]]
    return f"{folder.url}/{names[0]}" if names else ""
