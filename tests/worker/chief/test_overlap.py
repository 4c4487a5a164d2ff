"""The chief's choice whether workers overlap: by the time that all of them take for a step, and only if it pays."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from dataclasses import replace

import pytest

from downpour.proto import chief_pb2 as pb
from downpour.worker.chief.coordinator import Coordinator
from downpour.worker.chief.leases import LeaseTable
from downpour.worker.chief.overlap import OverlapChoice, Totals

WORKERS = frozenset((index, 1) for index in range(4))
Times = Callable[[bool], tuple[float, float]]  # seconds of a step, and of these waited for exchanges, by overlap


class Fleet:
    """Workers that report every second, and a chief's choice."""

    def __init__(self) -> None:
        self.choice, self.seen, self.now_s = OverlapChoice(), Totals(WORKERS), 0

    def run(self, times: Times, seconds: int) -> list[tuple[int, bool]]:
        """Returns what the workers were told from when on."""
        told = [(self.now_s, self.choice.overlaps)]
        for _ in range(seconds):
            self.now_s += 1
            step_s, wait_s = times(self.choice.overlaps)
            steps, seen = round(len(WORKERS) / step_s), self.seen
            self.seen = Totals(WORKERS, seen.steps + steps, seen.step_s + steps * step_s, seen.wait_s + steps * wait_s)
            overlaps = self.choice.update(self.now_s, self.seen)
            told += [(self.now_s, overlaps)] if overlaps != told[-1][1] else []
        return told


def noisy(without: float, overlapped: float, wait: float, spread: float = 0.0) -> Times:
    rng = random.Random(1)
    return lambda overlaps: ((overlapped if overlaps else without) * rng.uniform(1 - spread, 1 + spread), wait)


def test_nothing_is_tried_while_exchanges_take_a_small_share_of_a_step() -> None:
    fleet = Fleet()
    assert fleet.run(noisy(0.1, 0.05, wait=0.0025), 3600) == [(0, False)]


@pytest.mark.parametrize(("overlapped", "chosen"), [(0.08, True), (0.096, True), (0.098, False), (0.13, False)])
def test_overlap_is_chosen_if_it_makes_steps_three_percent_shorter(overlapped: float, chosen: bool) -> None:
    fleet = Fleet()
    told = fleet.run(noisy(0.1, overlapped, wait=0.02), 120)
    assert fleet.choice.chosen == fleet.choice.overlaps == chosen
    assert told[1][0] > 60, "not tried at once"
    assert told[2][0] - told[1][0] < 15, "not tried for longer than needed"


def test_a_gain_within_the_noise_is_none() -> None:
    for seed in range(20):
        fleet, rng = Fleet(), random.Random(seed)
        fleet.run(lambda overlaps, rng=rng: (0.1 * rng.gauss(1, 0.03), 0.02), 3600)  # type: ignore[misc]
        assert not fleet.choice.chosen, seed


def test_it_is_given_up_when_it_no_longer_pays() -> None:
    fleet = Fleet()
    fleet.run(noisy(0.1, 0.08, wait=0.02), 150)
    assert fleet.choice.chosen
    fleet.run(noisy(0.1, 0.1, wait=0.001), 4000)
    assert not fleet.choice.chosen


def test_trials_become_rarer_and_a_changed_load_brings_the_next_one_early() -> None:
    fleet = Fleet()
    told = fleet.run(noisy(0.1, 0.1, wait=0.02), 4 * 3600)
    begun = [at_s for at_s, overlaps in told if overlaps]
    pauses = [after - before for before, after in itertools.pairwise(begun)]
    assert pauses == sorted(pauses) and 1800 < pauses[-1] < 1900
    assert sum(b - a for (a, on), (b, _) in itertools.pairwise(told) if on) < 150, "seconds of overlap in all"
    told = fleet.run(noisy(0.2, 0.12, wait=0.08), 60)
    assert fleet.choice.chosen, "the network is slower now"


def test_a_worker_that_comes_or_goes_ends_a_trial() -> None:
    fleet = Fleet()
    while not fleet.choice.overlaps:
        fleet.run(noisy(0.1, 0.05, wait=0.05), 1)
    seen = replace(fleet.seen, workers=WORKERS | {(9, 1)})
    assert not fleet.choice.update(fleet.now_s + 1, seen) and not fleet.choice.chosen


def test_before_the_first_worker_and_after_the_last_nothing_is_decided() -> None:
    choice = OverlapChoice()
    assert not any(choice.update(float(second), Totals()) for second in range(100))


def test_it_counts_the_workers_that_run() -> None:
    coordinator, choice, steps = Coordinator(10**9, 1000, LeaseTable(100, 10)), OverlapChoice(), 0
    lost = pb.WorkerReport(worker=2, incarnation=9, steps=1, wait_seconds=1e6)
    coordinator.report(lost, 0.0)
    for second in range(1, 150):
        steps += 20 if choice.overlaps else 10
        for worker in range(2):
            report = pb.WorkerReport(worker=worker, incarnation=1 + worker, steps=steps, input_seconds=0.1 * second)
            report.compute_seconds, report.wait_seconds = 0.5 * second, 0.4 * second
            coordinator.report(report, float(second))
        choice.look(coordinator, float(second))
    assert choice.chosen
