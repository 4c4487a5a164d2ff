"""The fields of a job that must be the same in every process, as text, to be compared with the chief's.

Two jobs are the same when all fields are equal, however recipe and overrides were spelled. These fields may differ
between processes and are left out:

| field | why |
|---|---|
| `cluster.threads_per_worker` | machines have different processors |
| `cluster.max_workers` | the chief's value decides; it may be raised while others run |
| `cluster.num_evaluators` | the chief gives checkpoints to as many as ask |
| `exchange.give_up_after_s` | how long this process tries |
| `data.folder`, `data.class_weights`, and any value that is a path | where a machine has the data |
| `callbacks`, `sinks` | only the chief calls them |

How many records and labels the data have is compared. Functions and classes are compared by their names, not by what
they do.
"""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from enum import Enum
from pathlib import PurePath
from typing import Any

import numpy as np

from downpour.launch.job import digests
from downpour.launch.job.job import Job
from downpour.model.data.batches import has_labelled_images

MAY_DIFFER = (
    "cluster.threads_per_worker",
    "cluster.max_workers",
    "cluster.num_evaluators",
    "exchange.give_up_after_s",
    "data.folder",
    "data.class_weights",
)
_CHIEFS_OWN = ("callbacks", "sinks")
_LONG = 100  # entries of a list that is compared as a whole
_ADDRESS = re.compile(r" at 0x[0-9a-f]+")


def same_fields(job: Job) -> dict[str, str]:
    """Every field that must be the same, by its name such as `rule.momentum`, as text.

    Raises:
        ValueError: The data cannot be read.
    """
    found = dict(_fields("", job))
    counts = ("num_records", "num_labels") if has_labelled_images(job.data) else ("num_records",)
    found |= {f"data.{name}": repr(getattr(job.data, name)) for name in counts}
    return {
        key: text for key, text in found.items() if key not in MAY_DIFFER and key.partition(".")[0] not in _CHIEFS_OWN
    }


def _fields(key: str, value: Any) -> Iterator[tuple[str, str]]:
    if isinstance(value, PurePath):
        return
    inside: Mapping[str, Any] = {}
    if is_dataclass(value) and not isinstance(value, type):
        text, inside = type(value).__qualname__, {f.name: getattr(value, f.name) for f in fields(value)}
    elif isinstance(value, Mapping):
        text, inside = "mapping", {str(name): value[name] for name in sorted(value, key=str)}
    elif isinstance(value, list) and len(value) > _LONG:  # of examples
        texts = hashlib.sha256()
        for pair in (pair for one in value for pair in _fields("entry", one)):
            texts.update(repr(pair).encode())
        text = f"{len(value)} entries of SHA-256 {texts.hexdigest()[:16]}"
    elif isinstance(value, tuple | list):
        text, inside = f"{len(value)} entries", {str(number): one for number, one in enumerate(value)}
    elif isinstance(value, functools.partial):
        text, inside = "partial", {"function": value.func, "arguments": value.args, "keywords": value.keywords}
    else:
        text = _text(value)
    if key:
        yield key, text
    for name, one in inside.items():
        yield from _fields(f"{key}.{name}" if key else name, one)


def _text(value: Any) -> str:
    if isinstance(value, Enum):
        return str(value)
    if isinstance(value, set | frozenset):
        return str(sorted(map(_text, value)))
    if isinstance(value, np.ndarray):
        return f"{value.dtype}{list(value.shape)} of {digests.of_array(value)}"
    if hasattr(value, "__qualname__"):
        return f"{getattr(value, '__module__', '')}.{value.__qualname__}"
    if hasattr(value, "get_config"):  # of Keras
        return f"{type(value).__qualname__} {_ADDRESS.sub('', repr(value.get_config()))}"
    return _ADDRESS.sub("", repr(value))
