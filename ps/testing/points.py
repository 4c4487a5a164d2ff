"""Named places in a shard's code where a test may stop it, to see what is left. Nothing happens there otherwise."""

from __future__ import annotations

from collections.abc import Callable

# Called with the name of every place that is passed.
on_reach: Callable[[str], None] | None = None


def reach(name: str) -> None:
    """The code has come to a place."""
    if on_reach is not None:
        on_reach(name)
