"""Whether workers should overlap the exchange with computing, where the job leaves it open. No clock, no I/O.

Overlap costs staleness: each worker's own push in flight, and what the others push during one step more. So it must
make the fleet faster, which no worker can see alone: on a machine that all share, a worker that overlaps takes the
others' processor time. Hence the chief tries it for all workers together, and compares the mean time of their steps:
some without, some with, some without overlap. It is chosen if that with overlap is at least 3 % shorter than both
others, and given up in the same way. While the workers wait for less than 3 % of their time for exchanges, there is
nothing to gain, so nothing is tried. Trials become rarer while they change nothing.

Guarded by the chief's lock.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from absl import logging

from downpour.worker.chief.coordinator import Coordinator
from downpour.worker.chief.reports import Reports

LEAST_GAIN = 1.03  # of steps in the same time, by overlap
_FIRST_AFTER_S = 60.0  # of training: short jobs are left alone, and the first steps are slower
_TRIAL_S, _TRIAL_STEPS = 8.0, 8  # at least, of each of the three parts; steps of each worker
_SETTLING_S, _SETTLING_STEPS = 1.5, 2  # at least, between two of them: workers hear of a change with their next report
_REST_S, _LONGEST_REST_S = 60.0, 1800.0  # between two trials, at first and at most
_LOOK_S = 0.5
_OTHER_LOAD = 1.5  # times as long, or as short, as at the last trial a step must be for the next trial to come early


@dataclass(frozen=True)
class Totals:
    """Totals over the running workers.

    Attributes:
        workers: Index and incarnation of each.
        steps: Steps computed.
        step_s: Seconds of these: waiting for batches and exchanges, and computing.
        wait_s: Seconds of these that were waited for exchanges.
    """

    workers: frozenset[tuple[int, int]] = frozenset()
    steps: int = 0
    step_s: float = 0.0
    wait_s: float = 0.0


def totals(reports: Reports, workers: Sequence[tuple[int, int]]) -> Totals:
    """Returns the totals of the workers (index, incarnation) that run."""
    found = [reports.of(*worker) for worker in workers]
    return Totals(
        frozenset(workers),
        sum(report.steps for report in found),
        sum(report.input_seconds + report.compute_seconds + report.wait_seconds for report in found),
        sum(report.wait_seconds for report in found),
    )


class OverlapChoice:
    """The choice for one job.

    Attributes:
        overlaps: Whether workers should overlap now, a trial included.
        chosen: What was found better, False at first.
    """

    def __init__(self) -> None:
        self.overlaps = self.chosen = False
        self._begun: tuple[float, Totals] | None = None  # of the measurement under way, or the settling before it
        self._settles = True
        self._measured: list[float] = []  # mean seconds of a step in the parts of this trial
        self._next_s, self._rest_s = 0.0, _REST_S
        self._step_s = 0.0  # mean seconds of a step at the last trial, as chosen
        self._looked_s = -math.inf

    def resume(self, chosen: bool) -> None:
        """Begins with what an earlier chief of this job had found better."""
        self.overlaps = self.chosen = chosen

    def look(self, coordinator: Coordinator, now_s: float) -> None:
        """Calls `update` with what the running workers have reported, twice a second at most."""
        if now_s >= self._looked_s + _LOOK_S:
            self._looked_s = now_s
            self.update(now_s, totals(coordinator.reports, coordinator.members.running(now_s)))

    def update(self, now_s: float, seen: Totals) -> bool:
        """Returns whether workers should overlap from now on.

        Args:
            now_s: The time, on a clock of the caller's.
            seen: What the running workers have reported up to now.
        """
        if self._begun is None or seen.workers != self._begun[1].workers:
            self._restart(now_s, seen)
            return self.overlaps
        begun_s, before = self._begun
        steps = seen.steps - before.steps
        least_s, least_steps = (_SETTLING_S, _SETTLING_STEPS) if self._settles else (_TRIAL_S, _TRIAL_STEPS)
        if now_s - begun_s < least_s or steps < max(1, least_steps * len(seen.workers)):
            return self.overlaps
        if not self._settles:
            self._measure((seen.step_s - before.step_s) / steps, (seen.wait_s - before.wait_s) / steps, now_s)
        else:
            self._settles = False
        self._begun = now_s, seen
        return self.overlaps

    def _restart(self, now_s: float, seen: Totals) -> None:
        """Begins anew: with the first workers, or when some have come or gone."""
        if self._begun is None:
            self._next_s = now_s + _FIRST_AFTER_S
        self.overlaps, self._settles, self._measured = self.chosen, True, []
        self._begun = now_s, seen

    def _measure(self, step_s: float, wait_s: float, now_s: float) -> None:
        """Takes the mean seconds of a step, and what of it was waited for exchanges, in one part of a trial."""
        if not self._measured:
            changed = max(step_s, self._step_s) > _OTHER_LOAD * min(step_s, self._step_s) > 0
            worth = self.chosen or wait_s * LEAST_GAIN > step_s * (LEAST_GAIN - 1)
            if not worth or (now_s < self._next_s and not changed):
                return
            self._step_s = step_s
        self._measured.append(step_s)
        if len(self._measured) == 3:
            self._decide(now_s)
        self.overlaps = self.chosen if len(self._measured) != 1 else not self.chosen
        self._settles = bool(self._measured)

    def _decide(self, now_s: float) -> None:
        first, other, last = self._measured
        if self.chosen:
            better = other < LEAST_GAIN * min(first, last)
        else:
            better = LEAST_GAIN * other < min(first, last)
        found = f"steps take {first:.4g}, {other:.4g} and {last:.4g} s"
        how = ("with, without and with", "without, with and without")[not self.chosen]
        self.chosen ^= better
        logging.info("%s %s overlap: exchanges %s", found, how, "overlap" if self.chosen else "do not overlap")
        self._rest_s = _REST_S if better else min(2 * self._rest_s, _LONGEST_REST_S)
        self._next_s = now_s + self._rest_s
        self._measured = []
