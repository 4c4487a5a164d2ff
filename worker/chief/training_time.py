"""How long training has lasted, over restarts of the chief and resumed jobs. Pure: no clock.

Guarded by the chief's lock, like the coordinator that holds it. Times are seconds of one monotonic clock.
"""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass
class TrainingTime:
    """The seconds of training of one job.

    Attributes:
        max_train_s: Seconds of training after which the job ends at any step; counted anew when it is resumed.
        started_s: When the first step began, computed from its worker's first report; None before.
        ended_s: When training ended; None before.
        seconds_before: Seconds of training before this object was made, under an earlier chief.
        resumed_s: Seconds of training before the job was resumed, which do not count towards `max_train_s`.
    """

    max_train_s: float = math.inf
    started_s: float | None = None
    ended_s: float | None = None
    seconds_before: float = 0.0
    resumed_s: float = 0.0

    def start(self, at_s: float) -> None:
        """Records when a step began; only the first one counts."""
        if self.started_s is None:
            self.started_s = at_s

    def end(self, at_s: float) -> None:
        """Records that training has ended; only the first time counts."""
        if self.ended_s is None:
            self.ended_s = at_s

    def train_s(self, now_s: float) -> float:
        """Seconds of training so far."""
        here = 0.0 if self.started_s is None else (self.ended_s or now_s) - self.started_s
        return self.seconds_before + here

    def left_s(self, now_s: float) -> float:
        """Seconds of training that are left; infinite before the first step."""
        return math.inf if self.started_s is None else self.max_train_s - self.train_s(now_s) + self.resumed_s

    def go_on(self, at_s: float, *, has_ended: bool) -> None:
        """Continues under a new chief: training went on from `at_s`, unless it `has_ended`."""
        self.started_s = at_s
        self.ended_s = at_s if has_ended else None
