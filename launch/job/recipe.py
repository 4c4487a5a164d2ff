"""Finds recipes and loads them, with overrides. Imports no TensorFlow, and neither do recipes."""

from __future__ import annotations

import contextlib
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
from downpour.launch.job.job import Job

_num_loading = 0


def names() -> list[str]:
    """The recipes that come with Downpour."""
    return sorted(module.name for module in pkgutil.iter_modules(recipes.__path__))


@mistakes.final()
def load(name_or_path: str | Path, overrides: Sequence[str] = ()) -> Job:
    """The job of a recipe.

    Args:
        name_or_path: A name out of `names()`, or the path of a .py file with a function `job() -> Job`.
        overrides: Each `key=value`, as `downpour.launch.job.overrides.apply` takes them.

    Raises:
        ValueError: There is no such recipe, it has no `job()`, or an override is refused.
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
    return typed_overrides.apply(job, overrides)


def _import(name: str) -> ModuleType:
    if name in names():
        return importlib.import_module(f"{recipes.__name__}.{name}")
    path = Path(name)
    if path.suffix != ".py" or not path.is_file():
        raise ValueError(f"no recipe {name!r}; the recipes are {', '.join(names())}, or give the path of a .py file")
    return _import_file(path)


def _import_file(path: Path) -> ModuleType:
    """Imports a file and registers it, as dataclasses defined in it need to find their module."""
    spec = importlib.util.spec_from_file_location(f"downpour_recipe_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module
