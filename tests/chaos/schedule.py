"""Which fault strikes whom, and when: pure, and the same for the same seed.

A kill or a pause strikes a process; a cut, a delay or a duplicate strikes the proxy before a server, named as the
server is. Kinds take turns, so that every kind comes about equally often. Within a kind a shard is twice as likely as
another role, since there are many of them.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

KILL, PAUSE, CUT, DELAY, DUPLICATE = KINDS = ("kill", "pause", "cut", "delay", "duplicate")
ON_PROCESSES = (KILL, PAUSE)

# Shortest and longest, in seconds; what is not here is over at once.
_DURATIONS_S = {PAUSE: (0.5, 8.0), DELAY: (0.5, 5.0), DUPLICATE: (2.0, 6.0)}
_SERVERS = ("ps", "chief")
_WEIGHTS = {"ps": 2}


@dataclass(frozen=True)
class Fault:
    """One fault.

    Attributes:
        at_s: Seconds after training has begun, if it goes as fast as planned.
        kind: One of `KINDS`.
        target: Process, such as `ps/3` or `chief`.
        duration_s: Until it ends; 0 for what is over at once.
    """

    at_s: float
    kind: str
    target: str
    duration_s: float

    @property
    def on_process(self) -> bool:
        """Whether it strikes the process itself, not its proxy."""
        return self.kind in ON_PROCESSES


def schedule(
    seed: int,
    seconds: float,
    num_faults: int,
    roles: Mapping[str, int],
    *,
    kinds: Sequence[str] = KINDS,
    calm_s: tuple[float, float] = (5.0, 10.0),
) -> list[Fault]:
    """Faults in the order of their times, spread evenly with some jitter.

    Args:
        seed: Another one gives another schedule.
        seconds: From the beginning of training to its end.
        num_faults: How many.
        roles: Processes of each role, for example `{"ps": 17, "worker": 2, "chief": 1, "evaluator": 1}`.
        kinds: Which there are.
        calm_s: Seconds at the beginning and at the end in which nothing is broken.

    Raises:
        ValueError: There is no time left between the calm seconds.
    """
    begin, end = calm_s[0], seconds - calm_s[1]
    if not begin < end:
        raise ValueError(f"{seconds:.0f} s leave no time for faults between {calm_s[0]:.0f} s and {calm_s[1]:.0f} s")
    chance = random.Random(seed)
    order: list[str] = []
    while len(order) < num_faults:
        order += chance.sample(list(kinds), len(kinds))
    each_s = (end - begin) / max(1, num_faults)
    times = [begin + (i + chance.random()) * each_s for i in range(num_faults)]
    return [_fault(chance, at_s, kind, roles, end) for at_s, kind in zip(times, order, strict=False)]


def _fault(chance: random.Random, at_s: float, kind: str, roles: Mapping[str, int], end_s: float) -> Fault:
    able = [role for role, count in roles.items() if count and (kind in ON_PROCESSES or role in _SERVERS)]
    role = chance.choices(able, [_WEIGHTS.get(role, 1) for role in able])[0]
    index = chance.randrange(roles[role])
    target = f"{role}/{index}" if role in ("ps", "worker") else role
    shortest, longest = _DURATIONS_S.get(kind, (0.0, 0.0))
    return Fault(at_s, kind, target, min(chance.uniform(shortest, longest), max(shortest, end_s - at_s)))
