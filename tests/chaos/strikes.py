"""Carries faults out, each by its attack, and makes sure that each of them happened.

Called by the main thread only, again and again (`Striker.tick`). A fault that finds its target gone, or busy with
another fault, waits for it; one that has waited too long counts as not fired.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tests.chaos.attacks import Attack
from tests.chaos.schedule import Fault

_FIRE_WITHIN_S = 60.0  # a worker takes its time to load TensorFlow on a busy machine


@dataclass
class Strike:
    """What became of a fault.

    Attributes:
        fault: As planned.
        due_s: When its time had come, by the monotonic clock, as the others.
        begun_s: When it began; None if it has not.
        fired: Whether it is known to have happened.
        ended_s: When it was over, or given up; None before. A kill is over once another process has begun.
        attack: What carries it out; made when it is to begin.
    """

    fault: Fault
    due_s: float
    begun_s: float | None = None
    fired: bool = False
    ended_s: float | None = None
    attack: Attack | None = None

    def __str__(self) -> str:
        """One line of a log."""
        fault = self.fault
        what = "" if self.fired else "  DID NOT FIRE"
        return f"{fault.at_s:7.1f} s  {fault.kind:<9} {fault.target:<9} {fault.duration_s:4.1f} s{what}"


class Striker:
    """Carries a schedule out.

    Args:
        faults: In the order of their times.
        attack_of: Makes the attack of a fault.
        on_end: Is told of every strike that is over.

    Attributes:
        strikes: What has come due.
    """

    def __init__(
        self,
        faults: Sequence[Fault],
        attack_of: Callable[[Fault], Attack],
        on_end: Callable[[Strike], None] = lambda strike: None,
    ) -> None:
        self.strikes: list[Strike] = []
        self._faults, self._attack_of, self._on_end = list(faults), attack_of, on_end

    def tick(self, at_s: float) -> None:
        """Begins what is due, looks after what goes on, ends what has lasted long enough."""
        while self._faults and self._faults[0].at_s <= at_s:
            self.strikes.append(Strike(self._faults.pop(0), time.monotonic()))
        busy = {s.fault.place for s in self.strikes if s.ended_s is None and s.begun_s is not None}
        for strike in self.strikes:
            if strike.ended_s is not None:
                continue
            if strike.begun_s is None and strike.fault.place not in busy:
                strike.attack = self._attack_of(strike.fault)
                if strike.attack.begin():
                    strike.begun_s = time.monotonic()
            if strike.begun_s is None:
                if time.monotonic() > strike.due_s + _FIRE_WITHIN_S:
                    self._over(strike)
                continue
            busy.add(strike.fault.place)
            if self._goes_on(strike):
                self._end(strike)

    def close(self) -> None:
        """Ends what goes on; what had not begun has not fired."""
        for strike in self.strikes:
            if strike.ended_s is None:
                self._end(strike)
        now = time.monotonic()
        self.strikes += [Strike(fault, now, ended_s=now) for fault in self._faults]
        self._faults.clear()

    def _goes_on(self, strike: Strike) -> bool:
        """Notes whether it has fired; returns whether it is to end."""
        assert strike.begun_s is not None and strike.attack is not None
        lasted_s = time.monotonic() - strike.begun_s
        strike.fired = strike.attack.has_fired() or strike.fired
        return strike.attack.is_over(lasted_s) or lasted_s > strike.fault.duration_s + _FIRE_WITHIN_S

    def _end(self, strike: Strike) -> None:
        if strike.begun_s is not None and strike.attack is not None:
            strike.attack.end()
        self._over(strike)

    def _over(self, strike: Strike) -> None:
        strike.ended_s = time.monotonic()
        self._on_end(strike)
