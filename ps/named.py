"""Rules and schedules as messages: a dataclass name and its numbers."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from downpour.proto import parameter_server_pb2 as pb


def to_message(value: Any) -> pb.Named:
    """A dataclass of numbers as a message."""
    return pb.Named(name=type(value).__name__, parameters=dataclasses.asdict(value))


def from_message(known: Mapping[str, type], message: pb.Named) -> Any:
    """The dataclass that a message names.

    Raises:
        ValueError: A name that is not in `known`, or parameters that the dataclass refuses.
    """
    if message.name not in known:
        raise ValueError(f"{message.name!r} is not known; known are {', '.join(sorted(known))}")
    kind = known[message.name]
    names = {field.name for field in dataclasses.fields(kind)}
    if unknown := sorted(set(message.parameters) - names):
        raise ValueError(f"{message.name} has no {', '.join(unknown)}; it has {', '.join(sorted(names)) or 'nothing'}")
    return kind(**message.parameters)
