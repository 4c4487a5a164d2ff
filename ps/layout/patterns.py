"""Name patterns, by which a job selects variables of a model. Pure."""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Sequence


def matching(field: str, pattern: str, names: Sequence[str]) -> set[str]:
    """The names that an `fnmatch` pattern matches.

    Args:
        field: Where the pattern was given, for the message.
        pattern: The pattern.
        names: Valid names.

    Raises:
        ValueError: The pattern matches none; the message has the field, the pattern and the most similar names.
    """
    matched = {name for name in names if fnmatch.fnmatchcase(name, pattern)}
    if not matched:
        near = difflib.get_close_matches(pattern, names, n=4, cutoff=0.0)
        raise ValueError(
            f"{field}: pattern {pattern!r} matches no variable; of {len(names)} names these are near: {', '.join(near)}"
        )
    return matched
