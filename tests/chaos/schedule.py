"""Which fault strikes whom, and when: pure, and the same for the same seed.

| kind | strikes | what it is |
|---|---|---|
| kill, pause | any process | SIGKILL; SIGSTOP for some seconds |
| cut, delay, duplicate | the proxy before a shard or the chief | connections broken off, held back, made twice |
| fill | chief: the disk of the run folder; shard: that of the arenas, and it is killed meanwhile | no space left |
| shift | any process | its wall clock jumps, and later jumps back |
| flip | chief: its journal, then it is killed; evaluator: the newest checkpoint | bytes changed, cut off or gone |
| intrude | chief, worker: a second one that must be refused; shard: one on another shard's arena | |

Kinds take turns, so that every kind comes about equally often. Within a kind a shard is twice as likely as another
role, since there are many of them.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

PROXIED = CUT, DELAY, DUPLICATE = ("cut", "delay", "duplicate")
KILL, PAUSE, FILL, SHIFT, FLIP, INTRUDE = ("kill", "pause", "fill", "shift", "flip", "intrude")
KINDS = (KILL, PAUSE, *PROXIED, FILL, SHIFT, FLIP, INTRUDE)

# Shortest and longest, in seconds; what is not here is over at once.
_DURATIONS_S = {
    PAUSE: (0.5, 8.0),
    DELAY: (0.5, 5.0),
    DUPLICATE: (2.0, 6.0),
    FILL: (1.0, 8.0),
    SHIFT: (4.0, 30.0),
}
_TAKES_S = 15.0  # until an intruder has loaded what it needs and is refused; it must come before the end
_EVERYBODY, _SERVERS = ("ps", "worker", "chief", "evaluator"), ("ps", "chief")
_ABLE = {KILL: _EVERYBODY, PAUSE: _EVERYBODY, SHIFT: _EVERYBODY, FLIP: ("chief", "evaluator")}
_ABLE |= {**dict.fromkeys(PROXIED, _SERVERS), FILL: _SERVERS, INTRUDE: ("ps", "worker", "chief")}
_WEIGHTS = {"ps": 2}


@dataclass(frozen=True)
class Fault:
    """One fault.

    Attributes:
        at_s: Seconds after training has begun, if it goes as fast as planned.
        kind: One of `KINDS`.
        target: Process, such as `ps/3` or `chief`.
        duration_s: Until it ends; 0 for what is over at once.
        variant: Chooses between several ways to do it; 0 or more.
    """

    at_s: float
    kind: str
    target: str
    duration_s: float
    variant: int = 0

    @property
    def place(self) -> tuple[str, str]:
        """What it strikes; two faults strike a place one after the other."""
        role = self.target.partition("/")[0]
        if self.kind == FILL:
            return "disk", role
        if self.kind in PROXIED:
            return "proxy", self.target
        # A second chief takes over from one that has died, as it should: it must find the first alive.
        if self.kind == SHIFT or (self.kind == INTRUDE and role != "chief"):
            return self.kind, self.target
        return "process", self.target


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
    faults = [_fault(chance, at_s, kind, roles, end) for at_s, kind in zip(times, order, strict=False)]
    return sorted(faults, key=lambda fault: fault.at_s)


def _fault(chance: random.Random, at_s: float, kind: str, roles: Mapping[str, int], end_s: float) -> Fault:
    able = [role for role, count in roles.items() if count and role in _ABLE[kind]]
    role = chance.choices(able, [_WEIGHTS.get(role, 1) for role in able])[0]
    index = chance.randrange(roles[role])
    target = f"{role}/{index}" if role in ("ps", "worker") else role
    shortest, longest = _DURATIONS_S.get(kind, (0.0, 0.0))
    if kind == INTRUDE:
        at_s = min(at_s, max(end_s - _TAKES_S, at_s / 2))
    duration_s = min(chance.uniform(shortest, longest), max(shortest, end_s - at_s))
    return Fault(at_s, kind, target, duration_s, chance.randrange(1 << 16))
