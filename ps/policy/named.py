"""Converts policies (rules, schedules and so on) to messages, a dataclass name and its numbers, and back. Pure."""

from __future__ import annotations

import dataclasses
import math
import typing
from collections.abc import Mapping
from typing import Any

from downpour.proto import parameter_server_pb2 as pb


def to_message(value: Any) -> pb.Named:
    """Converts a dataclass of numbers, flags and tuples of numbers."""
    message = pb.Named(name=type(value).__name__)
    for name, parameter in dataclasses.asdict(value).items():
        values = parameter if isinstance(parameter, tuple) else (parameter,)
        message.parameters[name].values.extend(map(float, values))
    return message


def from_message(known: Mapping[str, type], message: pb.Named) -> Any:
    """Converts a message to the dataclass that it names.

    Raises:
        ValueError: The name is not in `known`, a parameter is missing or unknown, or the dataclass refuses a value.
    """
    if message.name not in known:
        raise ValueError(f"{message.name!r} is not known; known are {', '.join(sorted(known))}")
    kind = known[message.name]
    types = typing.get_type_hints(kind)
    fields = {field.name: field for field in dataclasses.fields(kind)}
    if unknown := sorted(set(message.parameters) - set(fields)):
        raise ValueError(f"{message.name} has no {', '.join(unknown)}; it has {', '.join(sorted(fields)) or 'nothing'}")
    needed = [name for name, field in fields.items() if field.default is dataclasses.MISSING]
    if missing := [name for name in needed if name not in message.parameters]:
        raise ValueError(f"{message.name} lacks {', '.join(missing)}; it needs {', '.join(needed)}")
    return kind(**{name: _convert(name, numbers, types[name]) for name, numbers in message.parameters.items()})


def _convert(name: str, numbers: pb.Numbers, kind: Any) -> Any:
    """Converts numbers to the declared type: a tuple, a flag, a whole number or a number."""
    if typing.get_origin(kind) is tuple:
        return tuple(_number(name, value, typing.get_args(kind)[0]) for value in numbers.values)
    if len(numbers.values) != 1:
        raise ValueError(f"{name} has {len(numbers.values)} values; give one")
    return _number(name, numbers.values[0], kind)


def _number(name: str, value: float, kind: type) -> Any:
    if kind is int and not math.isfinite(value):
        raise ValueError(f"{name} is {value}; give a whole number")
    return kind(value)
