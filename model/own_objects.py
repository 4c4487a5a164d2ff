"""Classes and functions of the user's own that a saved model only names: a process that loads it must import them.

Keras keeps of an own layer, loss, activation, initializer and so on its name in a `.keras` file and no code. They are
found in what layers, losses and metrics were made with.

Keras is imported in the functions. Nothing here runs an operation or builds anything.
"""

from __future__ import annotations

import inspect
import sys
import types
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from downpour.model import keras_private

if TYPE_CHECKING:
    import keras

_OTHERWISE = (
    ", as Keras' guide to custom layers shows, or give fit a function at the top level of a file that builds and "
    "compiles the model"
)
# Where Keras looks for functions by their plain names when it loads a model.
_NAMESPACES = ("activations", "constraints", "initializers", "losses", "metrics", "regularizers")


@dataclass(frozen=True)
class OwnObject:
    """A class or function that Keras does not have itself.

    Attributes:
        name: What a saved model calls it: the name it is registered by, or its own.
        value: The class or function.
        place: What uses it, such as "activation of Dense 'hidden'".
    """

    name: str
    value: Any
    place: str


def own_classes(model: keras.Model) -> list[str]:
    """The classes of layers, `module.Class`, without which Keras alone cannot load a `.keras` or `.h5` file."""
    kinds = {type(layer) for layer in keras_private.layers_of(model)}
    return sorted(f"{k.__module__}.{k.__qualname__}" for k in kinds if _is_own(k))


def own_objects(model: keras.Model) -> list[OwnObject]:
    """Everything of the user's own in a compiled model's layers, losses and metrics, each name once.

    Raises:
        ValueError: Other processes could not load it: it is a lambda or defined in a function, two objects have one
            name, a function has a name of Keras' own, or `get_config` of a class does not return its arguments.
    """
    found: dict[str, OwnObject] = {}
    for layer in reversed(keras_private.layers_of(model)):  # inner ones first: they name the place
        _look(layer, _called(layer), found)
    for argument, given in keras_private.compile_arguments(model).items():
        for value in _leaves(given):
            _look(value, f"{argument} of compile()", found)
    return list(found.values())


def _look(value: Any, place: str, found: dict[str, OwnObject]) -> None:
    """Adds a value and what it was made with to `found`."""
    if isinstance(value, type | types.FunctionType):
        _add(value, place, found)
    elif hasattr(value, "get_config"):
        _add(type(value), place, found)
        for argument, inner in _arguments(value, place):
            _look(inner, f"{argument} of {place}", found)
    elif callable(value):
        raise ValueError(
            f"{place} is a {type(value).__name__}, which Keras does not save; give a function at the top level of a "
            "file, or an object of one of Keras' classes, or of your own class of that kind with a get_config"
        )


def _arguments(value: Any, place: str) -> Iterator[tuple[str, Any]]:
    """Names and values of what an object of Keras' kind was made with: its functions, and objects of that kind."""
    import keras

    is_own = _is_own(type(value))
    if not is_own and isinstance(value, keras.Model):
        return  # its arguments are layers, which are looked at one by one
    config = _config(value, place) if is_own else {}
    for argument in {**inspect.signature(value.__init__).parameters, "activity_regularizer": None}:
        if is_own and argument not in config:
            continue
        for inner in _leaves(getattr(value, argument, getattr(value, f"_{argument}", None))):
            if _is_object(inner):
                yield argument, inner
    for argument, described in config.items():
        for inner in _leaves(described):
            if _is_object(inner):
                yield argument, inner
        for name in _functions_in(described):
            function = _function(value, name)
            if function is None and _of_keras(name) is None:
                raise ValueError(
                    f"{argument} of {place} is a function {name}, which is found neither in {type(value).__name__} nor "
                    "in its file; define it at the top level of that file"
                )
            if function is not None:
                yield argument, function


def _function(value: Any, name: str) -> Any:
    """The function that an object has described by its name: one that it holds, or of its file; None if none is."""
    import keras

    held = [one for one in _leaves(vars(value)) if isinstance(one, types.FunctionType)]
    module = sys.modules.get(type(value).__module__)
    found = [one for one in held if keras.saving.get_registered_name(one) == name]
    return next(iter(found), None) or keras.saving.get_registered_object(name) or getattr(module, name, None)


def _is_object(value: Any) -> bool:
    """Whether it is a function, or an object that Keras saves by its class and config and that is no layer."""
    import keras

    is_layer = isinstance(value, keras.layers.Layer | keras.DTypePolicy)
    return not is_layer and (callable(value) or hasattr(value, "get_config"))


def _config(value: Any, place: str) -> Mapping[str, Any]:
    """What an object of the user's own class is saved as."""
    try:
        config: Mapping[str, Any] = value.get_config()
    except NotImplementedError:
        raise ValueError(
            f"{place}: its class {type(value).__name__} has no get_config for the arguments that it was made with, so "
            f"it cannot be saved for other processes; add one that returns them{_OTHERWISE}"
        ) from None
    _check_arguments(value, config, place)
    return config


def _check_arguments(value: Any, config: Mapping[str, Any], place: str) -> None:
    """Raises `ValueError` if an object of its config would be another one; classes may read their config themselves."""
    import keras

    kind = type(value)
    reads = next(base for base in kind.__mro__ if "from_config" in vars(base))
    if isinstance(value, keras.Model) or _is_own(reads):
        return
    parameters = inspect.signature(value.__init__).parameters
    takes_more = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    if surplus := [name for name in config if name not in parameters and not takes_more]:
        raise ValueError(
            f"{place}: {kind.__name__}.__init__ does not take {', '.join(surplus)}, which its get_config returns; let "
            f"it take **more and pass that to super().__init__{_OTHERWISE}"
        )
    if not _is_own(next(base for base in kind.__mro__ if "__init__" in vars(base))):
        return
    for name, parameter in parameters.items():
        is_fixed = parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL) or name in {"dtype", *config}
        if not is_fixed and not _is_default(value, name, parameter.default):
            raise ValueError(
                f"{place}: get_config of {kind.__name__} leaves out the argument {name}, so other processes would make "
                f"it without; return it there{_OTHERWISE}"
            )


def _is_default(value: Any, argument: str, default: Any) -> bool:
    """Whether an object is known to have an argument's default."""
    missing = object()
    given = getattr(value, argument, getattr(value, f"_{argument}", missing))
    return given is default or (isinstance(default, bool | int | float | str) and bool(given == default))


def _functions_in(described: Any) -> Iterator[str]:
    """Names of the functions in a config that an own class has serialised itself, but for those of layers in it."""
    if isinstance(described, Mapping) and "class_name" in described:
        if described["class_name"] == "function":
            yield str(described.get("config"))
    elif isinstance(described, Mapping):
        for inner in described.values():
            yield from _functions_in(inner)
    elif isinstance(described, list | tuple):
        for inner in described:
            yield from _functions_in(inner)


def _add(value: Any, place: str, found: dict[str, OwnObject]) -> None:
    """Adds a class or function, if it is the user's own.

    Raises:
        ValueError: As `own_objects`.
    """
    import keras

    if not _is_own(value) and not _is_unknown_to_keras(value):
        return
    if "<" in value.__qualname__:
        raise ValueError(
            f"{place} is {value.__qualname__}, a lambda or local function or class, which other processes cannot "
            "import; define it at the top level of a file, under a name of its own, and import it from there"
        )
    name = keras.saving.get_registered_name(value)
    other = found.setdefault(name, OwnObject(name, value, place))
    rename = 'rename one, or decorate it with @keras.saving.register_keras_serializable(package="...", name="...")'
    if other.value is not value:
        raise ValueError(
            f"{place} and {other.place} are two objects that are both named {name}, of {value.__module__} and "
            f"{other.value.__module__}, and a saved model knows them by name only; {rename}"
        )
    if isinstance(value, types.FunctionType) and _is_own(value) and _of_keras(name) is not None:
        raise ValueError(
            f"{place} is a function {name} of {value.__module__}, and Keras has one of that name, which a saved model "
            f"would mean; {rename}"
        )


def _is_own(value: Any) -> bool:
    """Whether a class or function is not Keras'."""
    return bool(value.__module__.partition(".")[0] != "keras")


def _is_unknown_to_keras(value: Any) -> bool:
    """Whether it is one of Keras' functions that Keras does not find again by its name, such as `keras.ops.sin`."""
    return isinstance(value, types.FunctionType) and _of_keras(value.__name__) is None


def _of_keras(name: str) -> Any:
    """The function or class that Keras takes a plain name for; None if there is none."""
    import keras

    return next((found for space in _NAMESPACES if (found := getattr(getattr(keras, space), name, None))), None)


def _called(layer: Any) -> str:
    return f"{type(layer).__name__} {layer.name!r}"


def _leaves(nest: Any) -> Iterator[Any]:
    if isinstance(nest, Mapping):
        nest = list(nest.values())
    if isinstance(nest, list | tuple):
        for inner in nest:
            yield from _leaves(inner)
    else:
        yield nest
