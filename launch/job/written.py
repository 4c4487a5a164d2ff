"""Writes Python objects into a recipe file, for other processes to read: values as source, data beside it as files.

Nothing is written before all of a recipe's values have been turned into source: `Writer.save` writes the files, of
arrays and pickled data sources.

A function or class goes by module and name, or by the file of a script and name, so it must be at the top level of a
file: what a notebook or a lambda defines exists in its own process alone. The recipe reads arrays back with `array`,
functions with `imported`, data sources with `Pickled`, and a saved model with `saved_model`.
"""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import sys
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from downpour import files
from downpour.launch.job import digests
from downpour.model import unsaved
from downpour.model.data import pickled
from downpour.model.data.indexed import is_batched
from downpour.worker.chief.callbacks import Callback
from downpour.worker.chief.sinks import Sink

if TYPE_CHECKING:
    import keras

UNSAVED = ".npz"  # ends the name of the file beside a saved model, for `model.unsaved`

# Warnings of loading: the optimizer's state is not used, and `unsaved.restore` notices layers that are not built.
_EXPECTED = ("Skipping variable loading for optimizer", r"`build\(\)` was called on layer")

_PLAIN = (bool, int, float, complex, str, bytes, type(None))
_LONG = 100  # entries of a list that is a data source
_FUNCTION = (
    "give arrays, or a function at the top level of a file that returns it: every process that reads the data calls it"
)


class _NotImportable(ValueError):
    """A function or class that other processes cannot import."""


class Writer:
    """Writes values as source text, and their arrays and data sources into a folder.

    Args:
        folder: Folder of these files, beside the recipe.

    Attributes:
        imports: Lines that the source needs.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._files: list[np.ndarray | bytes] = []  # the number of a file is its place
        self.imports: set[str] = set()

    def source(self, value: Any, name: str) -> str:
        """Returns the source of a value.

        Args:
            value: Plain values, arrays, functions and classes at the top level of a file, dataclasses, callbacks
                and sinks without attributes, and tuples, lists and dicts of them; long lists and objects with length
                and index, which are data sources.
            name: What messages call it.

        Raises:
            ValueError: It, or something in it, cannot be written.
        """
        if isinstance(value, _PLAIN):
            return f"float({str(value)!r})" if isinstance(value, float) and not np.isfinite(value) else repr(value)
        if isinstance(value, np.generic):
            return repr(value.item())
        if isinstance(value, np.ndarray):
            return self._array(value)
        if hasattr(value, "__dlpack__"):  # an array of TensorFlow, torch or JAX
            return self._array(np.asarray(value))
        if isinstance(value, list) and len(value) > _LONG:
            return self._pickled(value, name)
        if isinstance(value, tuple | list):
            inside = ", ".join(self.source(one, f"{name}[{i}]") for i, one in enumerate(value))
            return f"[{inside}]" if isinstance(value, list) else f"({inside},)" if value else "()"
        if isinstance(value, Mapping):
            pairs = [f"{self.source(key, name)}: {self.source(one, f'{name}[{key!r}]')}" for key, one in value.items()]
            return f"{{{', '.join(pairs)}}}"
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            fields = [f for f in dataclasses.fields(value) if f.init]
            inside = ", ".join(f"{f.name}={self.source(getattr(value, f.name), f'{name}.{f.name}')}" for f in fields)
            return f"{self.reference(type(value), name)}({inside})"
        if isinstance(value, Callback | Sink):
            if vars(value):
                raise ValueError(
                    f"{name} is a {type(value).__name__}, whose attributes live in this process only; make its class a "
                    "dataclass (@dataclasses.dataclass), from whose fields the recipe makes it anew"
                )
            return f"{self.reference(type(value), name)}()"
        if callable(value) and hasattr(value, "__qualname__"):
            return self.reference(value, name)
        if hasattr(value, "__len__") and hasattr(value, "__getitem__"):
            return self._pickled(value, name)
        raise ValueError(f"{name} is a {type(value).__name__}, which lives in this process only; {_FUNCTION}")

    def reference(self, value: Any, name: str) -> str:
        """Returns the source that imports a function or class.

        Raises:
            ValueError: It is not at the top level of a file.
        """
        place = _script_of(value, name)
        if place is not None:
            self.imports.add("from downpour.launch.job.written import imported")
            return f"imported({place[0]!r}, {place[1]!r})"
        self.imports.add(f"import {value.__module__}")
        return f"{value.__module__}.{value.__qualname__}"

    def save(self) -> None:
        """Writes the files of the values so far, with their digests, and removes those of an earlier recipe."""
        written = []
        for number, content in enumerate(self._files):
            self._folder.mkdir(parents=True, exist_ok=True)
            path = self._folder / f"{number}{'.pickle' if isinstance(content, bytes) else '.npy'}"
            with files.replacing(path, ending=path.suffix) as new:
                if isinstance(content, bytes):
                    new.write_bytes(content)
                else:
                    np.save(new, content, allow_pickle=content.dtype == object)
            written.append(path)
        for path in {*self._folder.glob("[0-9]*.npy"), *self._folder.glob("[0-9]*.pickle")} - {*written}:
            path.unlink()
        if written:
            digests.record(self._folder, written)

    def _array(self, value: np.ndarray) -> str:
        self.imports.add("from downpour.launch.job.written import array")
        return f"array(HERE / {self._folder.name!r} / '{self._add(value)}.npy')"

    def _pickled(self, value: Any, name: str) -> str:
        what = f"{name} is a {type(value).__name__}"

        def reduce(part: Any) -> tuple[Any, ...] | None:
            place = _script_of(part, f"{what}, of which a part")
            return None if place is None else (imported, place)

        try:
            content = pickled.dumps(value, reduce, self._add)
        except _NotImportable:
            raise
        except Exception as error:  # pickle raises AttributeError, TypeError, PicklingError and what objects raise
            raise ValueError(f"{what}, which cannot be pickled ({error}); {_FUNCTION}") from error
        self.imports.add("from downpour.model.data.pickled import Pickled")
        path = f"HERE / {self._folder.name!r} / '{self._add(content)}.pickle'"
        return f"Pickled({path}, {pickled.digest(content)!r}, num_items={len(value)}, batched={is_batched(value)})"

    def _add(self, content: np.ndarray | bytes) -> int:
        known = (number for number, one in enumerate(self._files) if one is content)
        number = next(known, len(self._files))
        if number == len(self._files):
            self._files.append(content)
        return number


def array(path: Path) -> np.ndarray:
    """Reads an array: mapped, so that processes of one machine share its memory; arrays of strings are read whole."""
    try:
        return np.asarray(np.load(path, mmap_mode="r"))
    except ValueError:  # of objects
        return np.asarray(np.load(path, allow_pickle=True))


def imported(path: str, name: str) -> Any:
    """Returns a function or class of a script's file, which is imported once, and not as `__main__`.

    Raises:
        ValueError: The file or the name is missing.
    """
    module_name = f"downpour_script:{path}"
    if module_name not in sys.modules:
        spec = importlib.util.spec_from_file_location(module_name, path)
        if spec is None or spec.loader is None or not Path(path).is_file():
            raise ValueError(f"{path} is missing; a process of the job needs {name} of it")
        sys.modules[module_name] = module = importlib.util.module_from_spec(spec)
        sys.path.insert(0, str(Path(path).parent))  # as for a script that is run
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[module_name]
            raise
    found: Any = sys.modules[module_name]
    for part in name.split("."):
        found = getattr(found, part)
    return found


def saved_model(path: Path, objects: Mapping[str, Any]) -> Callable[[], keras.Model]:
    """Returns a function that loads a model with its loss and metrics; `objects` are classes and functions by name."""

    def model() -> keras.Model:
        import keras

        with warnings.catch_warnings():
            for expected in _EXPECTED:
                warnings.filterwarnings("ignore", expected)
            loaded = keras.saving.load_model(path, custom_objects=dict(objects))
        unsaved.restore(loaded, path.with_suffix(UNSAVED))
        return loaded

    return model


def _script_of(value: Any, name: str) -> tuple[str, str] | None:
    """Path and name of a function or class of a script; None for one of a module that can be imported.

    Raises:
        _NotImportable: It is not at the top level of a file.
    """
    module, qualified = value.__module__, value.__qualname__
    file = getattr(sys.modules.get(module), "__file__", None)
    if "<" in qualified or (module == "__main__" and file is None):
        what = "a lambda or local function" if "<" in qualified else "defined in a notebook or at a prompt"
        raise _NotImportable(
            f"{name} is {qualified}, {what}, which other processes cannot import; define it at the top level of a "
            "file and import it from there"
        )
    if module == "__main__" or not _is_importable(module):
        return str(Path(str(file)).absolute()), qualified
    return None


def _is_importable(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):
        return False
