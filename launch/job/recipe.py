"""Finds recipes and loads them, with overrides. Imports no TensorFlow, and neither do recipes."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import importlib
import importlib.util
import pkgutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType

from downpour.launch import recipes
from downpour.launch.job import mistakes
from downpour.launch.job import overrides as typed_overrides
from downpour.launch.job.epochs import steps_of
from downpour.launch.job.job import Job
from downpour.launch.job.overrides import Leaf

# Keys of overrides besides the job's fields: passes over the data in place of `num_steps`.
MORE_KEYS = (Leaf("epochs", float, None),)

_num_loading = 0


def names() -> list[str]:
    """The recipes that come with Downpour."""
    return sorted(module.name for module in pkgutil.iter_modules(recipes.__path__))


@mistakes.final()
def load(name_or_path: str | Path, overrides: Sequence[str] = ()) -> Job:
    """The job of a recipe.

    Args:
        name_or_path: A name out of `names()`, or the path of a .py file with a function `job() -> Job`.
        overrides: Each `key=value`, as `downpour.launch.job.overrides.apply` takes them, and `epochs=3`, which
            reads the length of the data.

    Raises:
        ValueError: There is no such recipe, it has no `job()`, or an override is refused; or `epochs` is given, and
            the data cannot be read or have no length.
        Mistake: The recipe's own code raised something else.
    """
    with _loading():
        return _load(name_or_path, overrides)


def is_loading() -> bool:
    """Whether a recipe is being loaded: what it imports must not start a job."""
    return _num_loading > 0


@contextlib.contextmanager
def _loading() -> Iterator[None]:
    global _num_loading
    _num_loading += 1
    try:
        yield
    finally:
        _num_loading -= 1


def _load(name_or_path: str | Path, overrides: Sequence[str]) -> Job:
    module = _import(str(name_or_path))
    if not callable(getattr(module, "job", None)):
        raise ValueError(f"recipe {name_or_path} has no function job(); define `def job() -> Job`")
    job = module.job()
    if not isinstance(job, Job):
        returned = type(job).__name__
        raise ValueError(f"recipe {name_or_path}: job() returned {returned}; return a downpour.launch.job.Job")
    return _overridden(job, overrides)


def _overridden(job: Job, overrides: Sequence[str]) -> Job:
    keys = [override.partition("=")[0].strip() for override in overrides]
    others = [override for override, key in zip(overrides, keys, strict=True) if key != "epochs"]
    epochs = [override.partition("=")[2].strip() for override in overrides if override not in others]
    job = typed_overrides.apply(job, others, MORE_KEYS)
    if not epochs:
        return job
    if "num_steps" in keys:
        raise ValueError("num_steps and epochs are given; give one of them")
    passes = MORE_KEYS[0].parse(epochs[-1])
    job.data.check()
    steps = steps_of(passes, job.data, job.batch_size, job.cadence, job.pace, job.steps_per_epoch)
    return dataclasses.replace(job, num_steps=steps)


def _import(name: str) -> ModuleType:
    if name in names():
        return importlib.import_module(f"{recipes.__name__}.{name}")
    path = Path(name)
    if path.suffix != ".py" or not path.is_file():
        near = "".join(f" did you mean {one}?" for one in _like(name))
        raise ValueError(
            f"no recipe {name!r};{near} the recipes are {', '.join(names())}, or give the path of a .py file"
        )
    return _import_file(path)


def _like(name: str) -> list[str]:
    """Recipes that come with Downpour, and files in the working directory, that are named like a name."""
    files = [path.name for path in Path().glob("*.py")]
    return difflib.get_close_matches(name, [*names(), *files], 2) or [file for file in files if file == f"{name}.py"]


def _import_file(path: Path) -> ModuleType:
    """Imports a file and registers it, as dataclasses defined in it need to find their module."""
    spec = importlib.util.spec_from_file_location(f"downpour_recipe_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module
