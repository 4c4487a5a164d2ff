"""Initial values from a file: `--init_from=PATH`, and `--init_only=PATTERN,...` for some of the variables.

The path is a Keras file (`.keras`, `.weights.h5` or `.h5`), a checkpoint, or the folder of a run, for its newest
undamaged checkpoint. Values are found by the names of variables, so that a network with another head can be the source:

    downpour local --recipe=quickstart --init_from=runs/first --init_only='stem_*,stage*' --run_dir=runs/second

Variables that no pattern matches keep their fresh values. Imports TensorFlow when it reads, not before.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging

from downpour.model import weights
from downpour.ps.checkpoint import manifest as checkpoint
from downpour.ps.checkpoint.manifest import Checkpoint
from downpour.ps.checkpoint.storage import Folder, StorageError
from downpour.ps.layout import STATISTIC, Layout, Variable
from downpour.ps.layout.patterns import matching

_ACCEPTED = "a .keras, .weights.h5 or .h5 file, a checkpoint's folder, or a run's folder with checkpoints"
_SHOWN = 3  # variables that one message names


@dataclass(frozen=True)
class Source:
    """Where initial values come from.

    Attributes:
        path: A Keras file, a checkpoint, or a run's folder.
        only: `fnmatch` patterns of the variables that are read.
    """

    path: str
    only: tuple[str, ...] = ("*",)

    def flags(self) -> dict[str, str]:
        """Flags that pass this source to a chief."""
        return {"init_from": self.path, "init_only": ",".join(self.only)}


def source_of(path: str | None, only: Sequence[str], run_dir: Path, resume: str = "no") -> Source | None:
    """Returns the source of initial values; None without a path.

    Args:
        path: A Keras file, a checkpoint, or a run's folder.
        only: Patterns of the variables that are read; none for all.
        run_dir: Folder of the new run.
        resume: As in `downpour.launch.roles.config.Checkpoints`.

    Raises:
        ValueError: Patterns lack a source, the run resumes, or a new run in `run_dir` removes the source.
    """
    if not path:
        if only:
            raise ValueError(f"--init_only={','.join(only)} without --init_from; give {_ACCEPTED}")
        return None
    if resume == "yes":
        raise ValueError("--init_from with --resume: the checkpoint has all values; leave one of them out")
    place, run = Path(path).resolve(), run_dir.resolve()
    if place == run or place.is_relative_to(run / "checkpoints"):
        raise ValueError(f"--init_from={path}: a new run in {run_dir} removes what is there; give another --run_dir")
    return Source(path, tuple(only) or ("*",))


def check(source: Source) -> None:
    """Raises `ValueError` for mistakes that can be found before a process starts, without TensorFlow."""
    if _is_folder(source.path):
        load_checkpoint(source.path, lambda saved: None)  # files are verified when values are read
    elif not Path(source.path).exists():
        raise ValueError(f"--init_from={source.path} is missing; give {_ACCEPTED}")
    elif weights.file_ending(source.path) is None:
        raise ValueError(f"--init_from={source.path} is of no known kind; give {_ACCEPTED}")


def load_checkpoint(path: str, verify: Callable[[Checkpoint], None] = Checkpoint.verify) -> Checkpoint:
    """The checkpoint in a folder, or the newest complete one of a run's folder that is not damaged; a path or a URL.

    Args:
        path: Path or URL of either folder.
        verify: Raises for a damaged checkpoint of a run's folder; see `checkpoint.newest`.

    Raises:
        ValueError: There is no undamaged checkpoint, or the folder cannot be read.
    """
    try:
        folder = Folder(path)
        steps = folder / "checkpoints"
        if checkpoint.MANIFEST in folder.names():
            return checkpoint.load(folder.url)
        if saved := checkpoint.newest(steps, verify):
            return saved
    except StorageError as error:
        raise ValueError(str(error)) from None
    raise ValueError(
        f"{path} is not a complete checkpoint and holds none; give a checkpoint's folder, which has a "
        f"{checkpoint.MANIFEST}, or the folder of a run that has written one"
    )


def values(model: Any, layout: Layout, source: Source | None, wire: str = "float32") -> list[np.ndarray]:
    """Returns one array per variable, in the layout's order: the source's where its patterns match, else fresh ones.

    Args:
        model: A built model with fresh values.
        layout: Layout of its variables.
        source: Where values are read; None for fresh values alone.
        wire: The exchange's codec, which must be able to represent them.

    Raises:
        ValueError: The source cannot be read, lacks a matching variable or has it in another shape, a pattern matches
            nothing, or a value is not finite on the wire.
    """
    from downpour.worker.step.variables import initial_values

    found = initial_values(model, layout)
    if source is not None:
        found = _with_source(model, layout, source, found)
    _check_finite(layout, found, wire)
    return found


def _with_source(model: Any, layout: Layout, source: Source, fresh: list[np.ndarray]) -> list[np.ndarray]:
    if not _is_folder(source.path):
        check(source)
    names = [variable.name for variable in layout.variables]
    of_model = [name for name in names if not name.endswith(weights.ASSIGNED)]
    wanted = set().union(*(matching("--init_only", pattern, of_model) for pattern in source.only))
    found = read(source.path, model, wanted)
    _check_found(layout, wanted, found, source)
    logging.info("%d of %d variables begin as in %s", len(wanted), len(names), source.path)
    return [found.get(name, value) for name, value in zip(names, fresh, strict=True)]


def _check_finite(layout: Layout, values: Iterable[np.ndarray], wire: str) -> None:
    """Raises `ValueError` for values that are not finite, or not in the wire's codec; statistics travel as float32."""
    for variable, value in zip(layout.variables, values, strict=True):
        narrow = np.float16 if wire == "float16" and variable.kind != STATISTIC else np.float32
        with np.errstate(over="ignore"):
            number = int(np.count_nonzero(~np.isfinite(value.astype(narrow))))
        if number:
            raise ValueError(
                f"{number} initial values of {variable.name} are not finite in {np.dtype(narrow).name}"
                + ("; give --set=exchange.codec=bfloat16 or float32" if np.isfinite(value).all() else "")
            )


def _is_folder(path: str) -> bool:
    """Whether the path can only be a checkpoint or a run; these may be in an object store, Keras' files may not."""
    return "://" in path or Path(path).is_dir()


def read(path: str, model: Any, wanted: Collection[str]) -> dict[str, np.ndarray]:
    """Reads the values of variables from a Keras file, a checkpoint or a run; those that are not there are left out.

    Args:
        path: A Keras file, a checkpoint, or a run's folder.
        model: The model that needs them; see `weights.read`.
        wanted: Names of the variables.

    Raises:
        ValueError: The source cannot be read.
    """
    if not _is_folder(path):
        return weights.read(path, model, wanted)
    saved = weights.named(load_checkpoint(path))
    return {name: value for name, value in saved.items() if name in wanted}


def _check_found(layout: Layout, names: Collection[str], found: Mapping[str, np.ndarray], source: Source) -> None:
    wanted = [variable for variable in layout.variables if variable.name in names]
    wrong = differences(wanted, found)
    if wrong:
        instead = "" if all(v.name in found for v in wanted) else _instead(layout, source)
        examples = "; ".join(wrong[:_SHOWN])
        raise ValueError(
            f"--init_from={source.path}: {len(wrong)} of the {len(wanted)} variables of "
            f"--init_only={','.join(source.only)} are missing there or have another shape: {examples}; "
            f"{instead}give --init_only patterns without them, or another source"
        )


def _instead(layout: Layout, source: Source) -> str:
    """For messages, the first layers that a source of another architecture has and the model lacks."""
    if _is_folder(source.path):
        there = [_layer(variable.name) for variable in load_checkpoint(source.path).layout.variables]
    else:
        there = weights.layers_in(source.path)
    mine = {_layer(variable.name) for variable in layout.variables}
    others = list(dict.fromkeys(name for name in there if name not in mine))
    return f"layers that only the source has: {', '.join(others[:_SHOWN])}; " if others else ""


def _layer(variable: str) -> str:
    """The layer in the name of its variable: `stem_conv` of `stem_conv/kernel`."""
    return variable.rpartition("/")[0].rpartition("/")[2] or variable


def differences(wanted: Iterable[Variable], found: Mapping[str, np.ndarray]) -> list[str]:
    """One text for each variable that is missing in what was read, or has another shape there."""
    return [_difference(v, found.get(v.name)) for v in wanted if v.name not in found or found[v.name].shape != v.shape]


def _difference(wanted: Variable, found: np.ndarray | None) -> str:
    there = "missing there" if found is None else f"{list(found.shape)} there"
    return f"{wanted.name} is {list(wanted.shape)} here, {there}"
