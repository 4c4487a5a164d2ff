"""Divides pictures into training and held-out ones, and finds those that would be in both.

Nothing here depends on the order in which pictures are listed: a picture's part, and its place in the shuffled order,
are functions of its name and the seed. A set that grows keeps the parts of the pictures that it had.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from downpour.model.vision.preparing.items import HELDOUT, TRAIN, Item

ON_LEAK = ("refuse", "remove")
_EXAMPLES = 3


def divide(items: Iterable[Item], copies: Iterable[Sequence[str]], heldout: float, seed: int) -> list[Item]:
    """Gives every picture a split, and shuffles.

    Args:
        items: With unique names; a split that an importer gave stays.
        copies: Groups of names whose files have the same content. A group that no importer has divided stays together:
            where one of it was given a split, the others get that, else all get the split of the first name.
        heldout: Fraction of the others that is held out.
        seed: Of the division and of the order.
    """
    by_name = {item.name: item for item in items}
    first = {name: min(group) for group in copies for name in group}
    given: dict[str, str] = {}
    for name, leader in first.items():
        if by_name[name].split == TRAIN or (by_name[name].split and leader not in given):
            given[leader] = by_name[name].split

    def split(item: Item) -> str:
        leader = first.get(item.name, item.name)
        by_hash = HELDOUT if _fraction(f"split {seed} {leader}") < heldout else TRAIN
        return item.split or given.get(leader, by_hash)

    divided = (replace(item, split=split(item)) for item in by_name.values())
    return sorted(divided, key=lambda item: (_fraction(f"order {seed} {item.name}"), item.name))


def leaks(items: Iterable[Item], copies: Iterable[Sequence[str]]) -> dict[str, str]:
    """Training pictures with the content of a held-out one: the name of each, and that of the held-out one."""
    splits: Mapping[str, str] = {item.name: item.split for item in items}
    found = {}
    for group in copies:
        heldout = [name for name in group if splits[name] == HELDOUT]
        if heldout:
            found.update({name: min(heldout) for name in group if splits[name] == TRAIN})
    return found


def refuse(found: Mapping[str, str]) -> None:
    """Raises `ValueError` if there are leaks; it names the first few."""
    if found:
        examples = "; ".join(f"{name} is {other}" for name, other in list(sorted(found.items()))[:_EXAMPLES])
        raise ValueError(
            f"{len(found)} training pictures are held out, too (files with the same content): {examples}. Scores would "
            "be of pictures that were learned: delete one of each, or leave them out of training by --on_leak=remove"
        )


def _fraction(text: str) -> float:
    """A number from 0 to 1 out of a text's SHA-256."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8]) / 2**64
