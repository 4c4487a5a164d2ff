"""The worker and the shard that take longest, compared with the median of the others. Pure: no clock, no I/O."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

STEP = ("input", "compute", "wait")  # what a step lasts, together
EXCHANGE = ("pull", "push")  # what `wait` was waited for; they may overlap with the rest
_OWN = ("input", "compute")  # what a worker does itself
_SLOW, _HOT = 1.5, 2.0  # times what is usual
_LEAST_S = 0.01  # that a step must be slower by: less is noise
_LEAST_STEPS = 10  # of a worker before it is compared
_OWN_OF_STEP = 0.25  # of a step, by which a worker's own part must exceed the others'
_OF_STEP = 0.1  # of a worker's step, that a hot shard takes
_LEAST_WAITING = 3  # pushes


@dataclass(frozen=True)
class Slowest:
    """The worker whose step takes longest, over the last seconds.

    Attributes:
        worker: Its index.
        part: The part of its step that exceeds the others' most, `pull` or `push` for waiting; of a single worker the
            largest.
        step_s: Seconds of its step.
        part_s: Seconds of that part.
        usual_step_s: Median of the other workers' steps; None for a single worker.
        usual_part_s: Median of the other workers' part; None for a single worker.
        is_slow: Whether that is a finding.
    """

    worker: int
    part: str
    step_s: float
    part_s: float
    usual_step_s: float | None = None
    usual_part_s: float | None = None
    is_slow: bool = False

    def __str__(self) -> str:
        text = f"worker {self.worker} takes {seconds_text(self.step_s)} a step"
        if self.usual_step_s is None or self.usual_part_s is None:
            return f"{text}, most of it {self.part} ({seconds_text(self.part_s)})"
        part = f"its {self.part} {seconds_text(self.part_s)}, theirs {seconds_text(self.usual_part_s)}"
        return f"{text}, others {seconds_text(self.usual_step_s)}; {part}"


@dataclass(frozen=True)
class Hottest:
    """The shard that takes longest to queue and apply a push, over the last seconds.

    Attributes:
        shard: Its index.
        push_s: Seconds that a push queues and is applied there.
        waiting: Pushes that wait for admission now.
        byte_rate: Bytes received and sent, a second.
        usual_push_s: Median of the other shards' `push_s`; None for a single shard.
        usual_byte_rate: Median of the other shards' `byte_rate`; None for a single shard.
        is_hot: Whether that is a finding.
    """

    shard: int
    push_s: float
    waiting: int
    byte_rate: float
    usual_push_s: float | None = None
    usual_byte_rate: float | None = None
    is_hot: bool = False

    def __str__(self) -> str:
        text = f"shard {self.shard} takes {seconds_text(self.push_s)} to queue and apply a push"
        if self.usual_push_s is not None:
            text += f", the others {seconds_text(self.usual_push_s)}"
        if self.waiting:
            text += f"; {self.waiting} pushes wait"
        if self.usual_byte_rate and self.byte_rate >= _HOT * self.usual_byte_rate:
            text += f"; it moves {self.byte_rate / self.usual_byte_rate:.1f} times the bytes"
        return text


def slowest(status: Mapping[str, Any]) -> Slowest | None:
    """The slowest running worker, over the last seconds; None if none has computed steps in them."""
    known: dict[int, Mapping[str, float]] = {
        int(worker["worker"]): worker["seconds_per_step"]
        for worker in status.get("workers", ())
        if worker["state"] == "running" and worker["steps"] >= _LEAST_STEPS and worker.get("seconds_per_step")
    }
    if not known:
        return None
    index = max(known, key=lambda index: (step_s(known[index]), _sum(known[index], _OWN)))
    found = _compared(index, known)
    if found.is_slow:
        return found
    # Where the pace has all wait for one worker, steps last the same everywhere; what differs is what each does itself.
    busiest = _compared(max(known, key=lambda index: _sum(known[index], _OWN)), known)
    return busiest if busiest.is_slow else found


def _compared(worker: int, known: Mapping[int, Mapping[str, float]]) -> Slowest:
    """Compares a worker's step with the median of the others'."""
    parts, others = known[worker], [one for index, one in known.items() if index != worker]
    if not others:
        part = _part(parts, {})
        return Slowest(worker, part, step_s(parts), parts.get(part, 0.0))
    usual = {name: statistics.median(one.get(name, 0.0) for one in others) for name in (*STEP, *EXCHANGE)}
    usual_s, usual_own_s = (statistics.median(_sum(one, names) for one in others) for names in (STEP, _OWN))
    own_s, part = _sum(parts, _OWN), _part(parts, usual)
    is_slow = step_s(parts) >= max(_SLOW * usual_s, usual_s + _LEAST_S)
    is_slow |= own_s >= max(_SLOW * usual_own_s, usual_own_s + max(_LEAST_S, _OWN_OF_STEP * step_s(parts)))
    return Slowest(worker, part, step_s(parts), parts.get(part, 0.0), usual_s, usual[part], is_slow)


def hottest(status: Mapping[str, Any]) -> Hottest | None:
    """The hottest shard, over the last seconds; None if no shard has received pushes in them."""
    known = {
        int(shard["shard"]): shard
        for shard in status.get("shards", ())
        if shard["state"] == "ready" and shard.get("seconds_per_push")
    }
    if not known:
        return None
    push_s = {index: _sum(shard["seconds_per_push"], ("queue", "apply")) for index, shard in known.items()}
    index = max(push_s, key=lambda index: (push_s[index], known[index]["pushes_waiting"]))
    waiting, rate = int(known[index]["pushes_waiting"]), _byte_rate(known[index])
    others = [other for other in known if other != index]
    if not others:
        return Hottest(index, push_s[index], waiting, rate)
    usual_s, usual_rate, usual_waiting = (
        statistics.median(values)
        for values in zip(
            *((push_s[other], _byte_rate(known[other]), known[other]["pushes_waiting"]) for other in others),
            strict=True,
        )
    )
    matters = push_s[index] >= _OF_STEP * (_usual_step(status) or float("inf"))
    matters |= waiting >= max(_LEAST_WAITING, _HOT * usual_waiting)
    return Hottest(
        index, push_s[index], waiting, rate, usual_s, usual_rate, matters and push_s[index] >= _HOT * usual_s
    )


def _usual_step(status: Mapping[str, Any]) -> float | None:
    """Median seconds of a worker's step, over the last seconds."""
    steps = [step_s(worker.get("seconds_per_step", {})) for worker in status.get("workers", ())]
    return statistics.median(known) if (known := [step for step in steps if step]) else None


def step_s(parts: Mapping[str, float]) -> float:
    """Seconds of a step, of its parts."""
    return _sum(parts, STEP)


def seconds_text(value: float) -> str:
    """`0.31 s` or `4.2 ms`."""
    return f"{value:.3g} s" if value >= 0.1 else f"{value * 1e3:.2g} ms"


def _part(parts: Mapping[str, float], usual: Mapping[str, float]) -> str:
    """The part of a step that exceeds what is usual most."""

    def excess(name: str) -> float:
        return parts.get(name, 0.0) - usual.get(name, 0.0)

    part = max(STEP, key=excess)
    return max(EXCHANGE, key=excess) if part == "wait" and any(name in parts for name in EXCHANGE) else part


def _byte_rate(shard: Mapping[str, Any]) -> float:
    return float(shard["bytes_received_per_second"]) + float(shard["bytes_sent_per_second"])


def _sum(parts: Mapping[str, float], names: Sequence[str]) -> float:
    return sum(parts.get(name, 0.0) for name in names)
