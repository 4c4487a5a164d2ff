"""Checks the types of a job's fields when its dataclasses are constructed. Pure.

Messages name the value, what is accepted, and an example. Dataclasses accept any value; a rule given as text, or one
pattern instead of a tuple of patterns, would otherwise fail minutes later in another process.
"""

from __future__ import annotations

import dataclasses
import inspect
import numbers
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from downpour.ps.layout import Rate, Slicing

_EXAMPLES = {
    "rule": "KerasAdam()",
    "schedule": "Constant(learning_rate=0.001)",
    "pace": "Bounded(lead=4)",
    "staleness": "Divide()",
    "cadence": "Accumulate(4)",
    "clip": "Clip(by_global_norm=1.0)",
    "average": "Polyak(decay=0.999)",
    "model": "ResNet(depth=18)",
    "data": 'ImageRecords(folder="data/openmoji", num_labels=1000)',
    "loss": "per_label_logistic",
    "cluster": "Cluster(num_ps=2, num_workers=2)",
    "exchange": 'Exchange(codec="float32")',
    "slicing": '(Slicing("head/*", num_slices=50),)',
    "rates": '(Rate("head/*", 0.1),)',
    "undecayed": '("*/bias", "*/gamma")',
    "frozen": '("stem/*",)',
    "statistics": '("*/moving_norm",)',
    "local": '("*/counter",)',
}
_DATASET = ("num_records", "check", "training", "heldout")
_OPTIONAL = ("clip", "average")
_PATTERNS = ("undecayed", "frozen", "statistics", "local")


def check_numbers(owner: str, value: Any) -> None:
    """Refuses fields annotated `int`, `float`, `bool` or `str` that hold something else.

    Args:
        owner: Prefix of the field's name in messages, such as `cluster.`.
        value: A dataclass whose annotations are strings.

    Raises:
        ValueError: A field holds another type; True is not a number.
    """
    for field in dataclasses.fields(value):
        given = getattr(value, field.name)
        accepts, accepted = _SCALARS.get(str(field.type), (lambda given: True, ""))
        if not accepts(given):
            raise ValueError(f"{owner}{field.name} is {given!r}, {_kind(given)}; give {accepted}")


def check_objects(job: Any, choices: Mapping[str, Mapping[str, type]]) -> None:
    """Refuses objects of a job that are of another type than their field.

    Args:
        job: A `Job`.
        choices: For each field that takes one of several dataclasses, these by name.

    Raises:
        ValueError: The message names field, given value and an example.
    """
    for name, kinds in choices.items():
        _check_choice(name, getattr(job, name), kinds)
    _check_model(job.model)
    describes = ("blank",) if _has(job.data, "blank") else ("image_size", "num_labels")
    _check_instance("data", job.data, (*describes, *_DATASET), "a data source")
    if job.loss is not None and (not callable(job.loss) or isinstance(job.loss, type)):
        accepted = "a function loss(labels, outputs) that returns one number, or None for a compiled model"
        _refuse("loss", job.loss, accepted)
    for name, entry in (("slicing", Slicing), ("rates", Rate), *((name, str) for name in _PATTERNS)):
        _check_tuple(name, getattr(job, name), entry)
    for name in ("slicing", "rates"):
        for i, value in enumerate(getattr(job, name)):
            check_numbers(f"{name}.{i}.", value)


def check_sets(name: str, given: Any) -> None:
    """Refuses what is no mapping of names to data sets.

    Raises:
        ValueError: A name is no word, or its value no data set.
    """
    if not isinstance(given, Mapping):
        _refuse(name, given, "a dict of data sets by name")
    for key, value in given.items():
        if not isinstance(key, str) or not key.isidentifier():
            raise ValueError(f"{name} has the name {key!r}; give one of letters, digits and underscores")
        _check_instance(f"{name}[{key!r}]", value, _DATASET, "a data source")


def _check_choice(name: str, given: Any, kinds: Mapping[str, type]) -> None:
    if type(given) in kinds.values() or (given is None and name in _OPTIONAL):
        return
    accepted = ", ".join(kinds) + (" or None" if name in _OPTIONAL else "")
    if name in ("rule", "schedule") and dataclasses.is_dataclass(given) and not isinstance(given, type):
        raise ValueError(
            f"{name} is a {type(given).__name__}, a class of your own; shards run compiled {name}s, which they know by "
            f"name: give one of {accepted}, such as {_EXAMPLES[name]}"
        )
    _refuse(name, given, f"one of {accepted}")


def _check_model(model: Any) -> None:
    accepted = "a function that returns a new keras.Model, or an object whose build(image_size, num_labels) does"
    if any(base.__module__.split(".")[0] == "keras" for base in type(model).__mro__):
        raise ValueError(
            f"model is a {type(model).__name__} that is built already; every process builds its own: give {accepted}, "
            f"such as {_EXAMPLES['model']}"
        )
    if isinstance(model, type) or not _takes_nothing(model):
        _check_instance("model", model, ("build",), accepted)


def _check_instance(name: str, given: Any, has: Iterable[str], accepted: str) -> None:
    """Refuses classes, and objects that lack an attribute; properties are not read, as they may need files."""
    missing = [attribute for attribute in has if not _has(given, attribute)]
    if isinstance(given, type) or missing:
        lack = f" without {', '.join(missing)}" if missing and not isinstance(given, type) else ""
        _refuse(name, given, accepted, lack)


def _takes_nothing(given: Any) -> bool:
    """Whether something can be called without arguments."""
    try:
        inspect.signature(given).bind()
    except (TypeError, ValueError):
        return False
    return True


def _has(given: Any, attribute: str) -> bool:
    try:
        inspect.getattr_static(given, attribute)
    except AttributeError:
        return False
    return True


def _check_tuple(name: str, given: Any, entry: type) -> None:
    if isinstance(given, tuple) and all(isinstance(value, entry) for value in given):
        return
    of = {str: "name patterns", Slicing: "Slicing(pattern, num_slices)", Rate: "Rate(pattern, multiplier)"}[entry]
    one = f"; ({given!r},) is a tuple of one" if isinstance(given, entry) else ""
    _refuse(name, given, f"a tuple of {of}", more=one)


def _refuse(name: str, given: Any, accepted: str, lack: str = "", more: str = "") -> None:
    shown = (
        f"the class {given.__name__}, not an object of it"
        if isinstance(given, type)
        else f"{_short(given)}, {_kind(given)}"
    )
    raise ValueError(f"{name} is {shown}{lack}; give {accepted}, such as {_EXAMPLES[name]}{more}")


def _short(given: Any) -> str:
    text = repr(given)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _kind(given: Any) -> str:
    names = {str: "a text", bool: "a truth value", int: "a whole number", float: "a number", type(None): "nothing"}
    return names.get(type(given), f"a {type(given).__name__}")


def _is_number(given: Any) -> bool:
    return isinstance(given, numbers.Real) and not isinstance(given, bool)


def _is_whole(given: Any) -> bool:
    return isinstance(given, numbers.Integral) and not isinstance(given, bool)


_SCALARS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "int": (_is_whole, "a whole number"),
    "float": (_is_number, "a number"),
    "bool": (lambda given: isinstance(given, bool), "True or False"),
    "str": (lambda given: isinstance(given, str), "a text"),
}
