"""Named points in a shard's code where a test may interrupt it, to check the state left; no-ops otherwise."""

from __future__ import annotations

from collections.abc import Callable

# Called with the name of every point that is passed.
on_reach: Callable[[str], None] | None = None


def reach(name: str) -> None:
    """Reports that the code has reached a named point."""
    if on_reach is not None:
        on_reach(name)
