"""Weights in Keras's files: written so that Keras alone can load them, read by the names of variables.

| ending | what it is |
|---|---|
| `.keras` | a model with its weights |
| `.weights.h5` | weights, as Keras 3 writes them |
| `.h5` | a model with its weights, as older Keras wrote them; read also if it holds weights alone |
| none | a folder, TensorFlow's SavedModel; can be written, not read |

A variable's name is its path in Keras, `stem_conv/kernel`. Keras is imported in the functions, so that a launcher can
check the name of a file without it.
"""

from __future__ import annotations

import contextlib
import zipfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from downpour.model import keras_private, lean

if TYPE_CHECKING:
    import keras

KERAS, WEIGHTS, LEGACY, SAVED_MODEL = ".keras", ".weights.h5", ".h5", ""

ASSIGNED = ":assigned"  # ends the name of what is added to a kernel that its layer assigns (`worker.step.assigned`)

Pairs = Iterator[tuple[str, Any]]  # names of variables and their values
Numbered = Mapping[str, Any]  # the variables of one layer, by number


def file_ending(path: str | Path) -> str | None:
    """Returns `.keras`, `.weights.h5` or `.h5`; None for any other file."""
    name = Path(path).name
    return next((ending for ending in (KERAS, WEIGHTS, LEGACY) if name.endswith(ending)), None)


def save(model: keras.Model, path: Path, ending: str) -> None:
    """Writes a model's weights, and the model itself unless the ending is `.weights.h5`.

    Args:
        model: A built model. Its optimizer, if any, is left out.
        path: Where to write; ends with `ending`.
        ending: KERAS, WEIGHTS, LEGACY or SAVED_MODEL.

    Raises:
        OSError: The file cannot be written.
    """
    if ending == SAVED_MODEL:
        model.export(path, verbose=False)
    elif ending == WEIGHTS:
        model.save_weights(path)
    else:
        model.save(path, include_optimizer=False)


def named(saved: Any, average: bool = False) -> dict[str, np.ndarray]:
    """The values of a `ps.checkpoint.manifest.Checkpoint`, or their average, by the names of variables."""
    return by_name(saved.layout, saved.parameters(average))


def by_name(layout: Any, vectors: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
    """The values in the vectors of all shards of a `ps.layout.Layout`, by the names of variables."""
    values = layout.gather(vectors)
    return added({variable.name: value for variable, value in zip(layout.variables, values, strict=True)})


def added(values: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The values of a layout's variables with those that end with `ASSIGNED` added to the kernels they belong to."""
    return {
        name: value + values[name + ASSIGNED] if name + ASSIGNED in values else value
        for name, value in values.items()
        if not name.endswith(ASSIGNED)
    }


def load(model: keras.Model, saved: Any, average: bool = False) -> None:
    """Assigns the values of a checkpoint, or their average, to a model's variables by name, one by one.

    Holds the model's values once, where `assign(model, named(saved))` takes the memory of them all three times.

    Args:
        model: A built model; variables that the checkpoint does not have stay as they are.
        saved: A `ps.checkpoint.manifest.Checkpoint`.
        average: Whether the average is assigned.

    Raises:
        ValueError: As `Checkpoint.parameters` does; the model is then not to be used until it is assigned again.
    """
    own = {variable.path: variable for variable in model.variables}
    for described in saved.layout.variables:
        if described.name in own and lean.is_large(described.shape):
            lean.assign(own[described.name], lean.zeros(described.shape))  # gives the memory of the old value back
    added_last: dict[str, np.ndarray] = {}
    for name, value in _values(saved, "slot.average" if average else "parameters"):
        if name.endswith(ASSIGNED):
            added_last[name.removesuffix(ASSIGNED)] = value
        elif name in own and lean.is_large(value.shape):
            lean.assign(own[name], _sound(name, value))
        elif name in own:
            own[name].assign(_sound(name, value))
    for name, value in added_last.items():
        own[name].assign(own[name].numpy() + value)


def _values(saved: Any, vector: str) -> Pairs:
    """Yields the name and value of each variable once all its ranges are read, shard by shard."""
    layout = saved.layout
    begun: dict[int, tuple[np.ndarray, int]] = {}  # values, and the number of elements that are read
    for shard, ranges in enumerate(layout.by_shard):
        file = saved.open(shard)
        for one in ranges:
            shape = layout.variables[one.variable].shape
            value, done = begun.pop(one.variable, (None, 0))
            if value is None:
                value = lean.zeros(shape) if lean.is_large(shape) else np.zeros(shape, np.float32)
            at = (slice(None),) * one.axis + (slice(one.begin, one.stop),) if shape else ()
            value[at] = file.vector(vector, one.offset, one.offset + one.size).reshape(layout.shape(one))
            if done + one.size == value.size:
                yield layout.variables[one.variable].name, value
            else:
                begun[one.variable] = value, done + one.size


def assign(model: keras.Model, values: Mapping[str, np.ndarray]) -> None:
    """Assigns values to a model's variables by name; variables without a value stay as they are."""
    for variable in model.variables:
        if variable.path in values:
            variable.assign(_sound(variable.path, values[variable.path]))


def _sound(name: str, value: np.ndarray) -> np.ndarray:
    """A value to compute with: the sum of stale differences can make a variance negative for a moment."""
    return np.maximum(value, 0) if name.endswith("/moving_variance") else value


def read(path: str | Path, model: keras.Model, names: Collection[str]) -> dict[str, np.ndarray]:
    """Reads the values of variables from a Keras file, as float32.

    Args:
        path: A `.keras`, `.weights.h5` or `.h5` file.
        model: The model that needs the values. Files of Keras 3 name layers but only number the variables of each,
            which are matched by number to those of this model's layers of the same name.
        names: Names of the variables; those that are not in the file are omitted from the result.

    Raises:
        ValueError: The file is missing, damaged or not a Keras file, has two variables of the same name, or has a
            layer with another number of variables than the model's.
    """
    wanted = set(names)
    pairs = (_read_keras if file_ending(path) == KERAS else _read_hdf5)(path, model, wanted)
    found: dict[str, np.ndarray] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"{path} has two variables {name!r}; give a file whose layers have names of their own")
        if name in wanted:
            found[name] = np.asarray(value, np.float32)
    return found


def layers_in(path: str | Path) -> list[str]:
    """Returns the names of the layers that have variables in a Keras file, in its order; for messages.

    Raises:
        ValueError: The file cannot be read.
    """
    import h5py  # type: ignore[import-untyped]

    try:
        with contextlib.ExitStack() as closing:
            stored: Any = path
            if file_ending(path) == KERAS:
                stored = closing.enter_context(closing.enter_context(zipfile.ZipFile(path)).open("model.weights.h5"))
            file = closing.enter_context(h5py.File(stored))
            root = file.get("model_weights", file)
            if legacy := _texts(root, "layer_names"):
                return [name for name in legacy if _texts(root[name], "weight_names")]
            return [name for name, group in _groups(path, file) if len(group)]
    except (OSError, KeyError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} cannot be read as a file of Keras: {error}; give another file") from None


def _read_keras(path: str | Path, model: keras.Model, wanted: set[str]) -> Pairs:
    """Reads layer by layer: the variables of a loaded model may have other paths than when it was saved."""
    import keras

    try:
        loaded = keras.saving.load_model(path, compile=False)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{path} cannot be loaded by Keras: {error}; give another file") from None
    return _by_layer(
        path, [(layer.name, _own_variables(layer)) for layer in keras_private.layers_of(loaded)], model, wanted
    )


def _read_hdf5(path: str | Path, model: keras.Model, wanted: set[str]) -> Pairs:
    """Reads Keras 3's or legacy weights, whichever the file holds: both endings are in use for both."""
    import h5py

    try:
        with h5py.File(path) as file:
            root = file.get("model_weights", file)  # a legacy file of weights alone has them at the top
            if _texts(root, "layer_names"):
                yield from _read_legacy(root)
            else:
                yield from _by_layer(path, _groups(path, file), model, wanted)
    except (OSError, KeyError) as error:
        raise ValueError(f"{path} cannot be read as an HDF5 file of Keras: {error}; give another file") from None


def _read_legacy(root: Any) -> Pairs:
    """Reads one group a layer, whose attribute lists its weights; TensorFlow added `:0` to their names."""
    groups = [root[layer] for layer in _texts(root, "layer_names")]
    groups += [root[name] for name in ("top_level_model_weights",) if name in root]
    for group in groups:
        for name in _texts(group, "weight_names"):
            yield name.removesuffix(":0"), group[name]


def _groups(path: str | Path, file: Any) -> list[tuple[str, Numbered]]:
    """Returns Keras 3's groups `vars`, one a layer, which have the layer's name as an attribute."""
    groups: list[Any] = []
    file.visititems(lambda _, item: groups.append(item) if "name" in item.attrs else None)
    if not groups:
        raise ValueError(f"{path} has no names of layers, as files of older Keras; save that model as .keras instead")
    return [(_text(group.attrs["name"]), group) for group in groups]


def _by_layer(path: str | Path, layers: Sequence[tuple[str, Numbered]], model: keras.Model, wanted: set[str]) -> Pairs:
    """Yields the variables of layers whose name the model has; within a layer they are matched by number."""
    for layer in keras_private.layers_of(model):
        paths = {number: variable.path for number, variable in _own_variables(layer).items()}
        if wanted.isdisjoint(paths.values()):
            continue
        for numbered in (numbered for name, numbered in layers if name == layer.name):
            if len(numbered) != len(paths):
                raise ValueError(
                    f"{path} has {len(numbered)} variables in layer {layer.name!r}, the model has {len(paths)}: "
                    f"{', '.join(paths.values())}; the layers must be alike"
                )
            yield from ((name, _array(numbered[number])) for number, name in paths.items())


def _own_variables(layer: Any) -> Numbered:
    """A layer's variables without those of nested layers, by the number that each has in a file of Keras 3."""
    variables: dict[str, Any] = {}
    layer.save_own_variables(variables)
    if getattr(layer, "lora_enabled", False):  # the first is written with the product of LoRA's matrices added
        variables["0"] = layer._embeddings if hasattr(layer, "_embeddings") else layer._kernel
    return {number: variable for number, variable in variables.items() if hasattr(variable, "path")}


def _array(value: Any) -> np.ndarray:
    """Reads a variable or an HDF5 data set. HDF5 has no bfloat16; Keras records it in the attribute `dtype`."""
    if hasattr(value, "numpy"):
        return value.numpy()
    if "dtype" not in value.attrs:
        return np.array(value)
    import ml_dtypes

    return np.array(value, dtype=ml_dtypes.bfloat16)


def _texts(group: Any, attribute: str) -> list[str]:
    """Reads a list of texts; a long one is stored in pieces, `layer_names0`, `layer_names1` and so on."""
    if attribute in group.attrs:
        return [_text(entry) for entry in group.attrs[attribute]]
    texts: list[str] = []
    piece = 0
    while f"{attribute}{piece}" in group.attrs:
        texts += [_text(entry) for entry in group.attrs[f"{attribute}{piece}"]]
        piece += 1
    return texts


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
