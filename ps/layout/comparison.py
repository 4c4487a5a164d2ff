"""Compares the layouts of two roles and describes how they differ. Pure."""

from __future__ import annotations

from downpour.proto.errors import LayoutMismatch
from downpour.ps.layout.layout import Layout, Variable, from_canonical, treatment_words


def check_same(mine: Layout, theirs: str, whose: str) -> None:
    """Compares a layout with another role's canonical form.

    Raises:
        LayoutMismatch: They differ; the message has both fingerprints and the first difference.
    """
    if mine.canonical == theirs:
        return
    other = from_canonical(theirs)
    raise LayoutMismatch(
        f"layout {mine.fingerprint.hex()[:16]} here, {other.fingerprint.hex()[:16]} on {whose}: "
        f"{first_difference(mine, other)}; start both with the same recipe and overrides"
    )


def first_difference(mine: Layout, theirs: Layout) -> str:
    """Describes the first difference of two layouts in words."""
    if mine.num_shards != theirs.num_shards:
        return f"{mine.num_shards} shards here, {theirs.num_shards} there"
    for a, b in zip(mine.variables, theirs.variables, strict=False):
        if a != b:
            return f"here {_words(a)}, there {_words(b)}"
    if len(mine.variables) != len(theirs.variables):
        return f"{len(mine.variables)} variables here, {len(theirs.variables)} there"
    for c, d in zip(mine.ranges, theirs.ranges, strict=False):
        if c != d:
            return f"the ranges of {mine.variables[c.variable].name}: here {c}, there {d}"
    return f"{len(mine.ranges)} ranges here, {len(theirs.ranges)} there"


def _words(v: Variable) -> str:
    return f"{v.name} {list(v.shape)} {treatment_words(v)}"
