"""The private parts of Keras that this project uses, each with what happens where a version of Keras lacks it.

Keras has no public way to list the layers within layers, to see that a layer is rematerialized, that an output is
masked or that a name was made by Keras, or to assign a variable in spite of a `keras.StatelessScope`.
`launch/job/compiled` reads two private attributes of optimizers besides.

Nothing here runs an operation, draws a random number or takes an automatic name, so that it may be called while a model
is built or traced. Threads: any.
"""

from __future__ import annotations

import contextlib
import functools
import re
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from absl import logging

if TYPE_CHECKING:
    import keras


def layers_of(model: keras.Model, *, include_self: bool = True) -> list[Any]:
    """Returns a model and all layers within it, outer ones before inner ones.

    Where `_flatten_layers` does not do that any longer, a warning says so, and only models within models are searched.
    Gradients of dense layers within other layers are then pushed dense, and moving statistics within them must be named
    in the job.
    """
    if _lists_inner_layers():
        return list(model._flatten_layers(include_self=include_self))
    inner = [found for layer in model.layers for found in (layers_of(layer) if hasattr(layer, "layers") else [layer])]
    return [model, *inner] if include_self else inner


def is_rematerialized(layer: Any) -> bool:
    """Whether a layer is computed a second time for its gradient (`keras.RematScope`); True if that is not known."""
    return getattr(layer, "_remat_mode", True) is not None


@contextlib.contextmanager
def measured(model: keras.Model) -> Iterator[list[Any]]:
    """Collects the outputs that `model.compute_metrics` is called with while the block lasts, in a list."""
    found: list[Any] = []
    compute = model.compute_metrics

    def collecting(*given: Any, **named: Any) -> Any:
        found.append(named["y_pred"] if "y_pred" in named else given[2])
        return compute(*given, **named)

    model.__dict__["compute_metrics"] = collecting  # not by `setattr`, which Keras takes for a part of the model
    try:
        yield found
    finally:
        del model.__dict__["compute_metrics"]


def mask_of(output: Any) -> Any:
    """Returns the mask that Keras has attached to a tensor; None if there is none, or that is not known."""
    return getattr(output, "_keras_mask", None)


def compile_arguments(model: keras.Model) -> dict[str, Any]:
    """Returns loss and metrics as `compile` was given them; empty where Keras does not keep that any longer.

    Functions and classes of the user's own among them must then be registered with Keras for a model to be loaded.
    """
    given = getattr(getattr(model, "_compile_config", None), "config", {})
    return {name: given.get(name) for name in ("loss", "metrics", "weighted_metrics")}


def restart_numbering() -> None:
    """Has Keras number unnamed layers from one, however many models this process has built."""
    from keras.src.utils.naming import reset_uids

    reset_uids()


def has_automatic_name(layer: Any) -> bool:
    """Whether a layer has a name that Keras gives a layer of its class without one, whatever its number."""
    from keras.src.utils.naming import to_snake_case

    return re.fullmatch(rf"((forward|backward)_)*{to_snake_case(type(layer).__name__)}(_\d+)?", layer.name) is not None


@contextlib.contextmanager
def renamed(model: keras.Model, names: Mapping[str, str]) -> Iterator[None]:
    """Gives the layers of a model other names while it is saved.

    Args:
        model: A model.
        names: New names by present ones; layers that are not among them keep theirs.
    """
    before = [(layer, layer.name) for layer in layers_of(model)]
    try:
        for layer, name in before:
            layer.name = names.get(name, name)
        yield
    finally:
        for layer, name in before:
            layer.name = name


@contextlib.contextmanager
def initializers_replaced(replaced: Callable[[Any, Any], Any]) -> Iterator[None]:
    """Has each variable that is made initialised by what `replaced(variable, initializer)` returns.

    Without `_initialize_with_initializer` nothing changes.
    """
    import keras

    kind: Any = keras.Variable
    plain = getattr(kind, "_initialize_with_initializer", None)
    if plain is None:
        yield
        return
    kind._initialize_with_initializer = lambda variable, initializer: plain(variable, replaced(variable, initializer))
    try:
        yield
    finally:
        kind._initialize_with_initializer = plain


def assign_now(variable: keras.Variable, value: Any) -> None:
    """Assigns a variable at once, within a `keras.StatelessScope` that does not hold it.

    Without `_direct_assign`, a floating-point variable that Keras reads in another dtype (mixed precision) cannot be
    assigned: an `AttributeError`.
    """
    if hasattr(variable, "_direct_assign"):
        variable._direct_assign(value)
    else:
        variable.value.assign(value)


@functools.cache
def _lists_inner_layers() -> bool:
    """Whether `_flatten_layers` lists a model, its layers and theirs."""
    import keras

    inner = keras.layers.Identity(name="inner")
    outer = keras.layers.TimeDistributed(inner, name="outer")
    model = keras.Sequential([outer], name="model")
    flatten: Callable[..., list[Any]] = getattr(model, "_flatten_layers", lambda **_: [])
    if flatten(include_self=True) == [model, outer, inner] and flatten(include_self=False) == [outer, inner]:
        return True
    logging.warning("keras %s does not list the layers within layers: factors are not used there", keras.__version__)
    return False
