"""The simulated fleet against what queueing theory knows exactly."""

from __future__ import annotations

import itertools
import math
import time
from collections import Counter
from typing import Any

import numpy as np
import pytest

from downpour.launch.planning.fleet import CallCosts, Fleet
from downpour.launch.planning.queueing import (
    BUCKETS,
    Event,
    Kind,
    distance,
    events,
    mean_of,
    percentile_of,
    simulate,
)  # fmt: skip
from downpour.ps.policy.pace import Async, Bounded, Sync

MB = 1e6


def paper(**changes: Any) -> Fleet:
    """50 workers of 7.2 s a step, 17 shards of 18.8 MB at 10 Gbit/s."""
    values: dict[str, Any] = {
        "num_workers": 50, "compute_s": 7.2, "pushes": [CallCosts(18.8 * MB, 0.006, 0.004)] * 17,
        "pulls": [CallCosts(18.8 * MB, 0.003, 0.003)] * 17, "shard_bytes_per_s": 1.25e9, "worker_bytes_per_s": 1.25e9,
    } | changes  # fmt: skip
    return Fleet(**values)


@pytest.mark.parametrize("num_workers", [1, 5, 10, 12, 15, 20, 40])
def test_exponential_times_and_one_shard_are_the_machine_repairman(num_workers: int) -> None:
    """M/M/1//N: p0 = 1 / sum over k of N!/(N-k)! (S/Z)^k; throughput (1 - p0) / S."""
    compute_s, service_s = 1.0, 0.08
    fleet = Fleet(num_workers, compute_s, [CallCosts(shard_s=service_s)], [CallCosts()], compute="exponential",
                  exponential_calls=True)  # fmt: skip
    idle = 1 / sum(math.perm(num_workers, k) * (service_s / compute_s) ** k for k in range(num_workers + 1))
    found = simulate(fleet, num_steps=40_000)
    assert found.steps_per_second == pytest.approx((1 - idle) / service_s, rel=0.03)
    # While a worker makes one step the others make one each, on average, whatever the load.
    assert found.staleness_mean == pytest.approx(num_workers - 1, rel=0.01, abs=0.01)


@pytest.mark.parametrize("num_workers", [1, 2, 4, 8, 16, 64])
@pytest.mark.parametrize("overlap", [False, True])
def test_no_fleet_is_faster_than_its_asymptotic_bounds(num_workers: int, overlap: bool) -> None:
    """W / (C + D), or W / max(C, D) with overlap, and 1 / D of the busiest station; both are met at the ends."""
    push, pull = CallCosts(2 * MB, 0.010, 0.002), CallCosts(1 * MB, 0.005, 0.002)
    fleet = Fleet(num_workers, 0.5, [push] * 3, [pull] * 3, overlap=overlap, shard_bytes_per_s=100 * MB,
                  worker_bytes_per_s=100 * MB)  # fmt: skip
    found = simulate(fleet).steps_per_second
    least = 3 * 2 * MB / (100 * MB)  # seconds of an exchange: the worker's own line, the pulls hidden by the pushes
    alone = num_workers / (max(0.5, least) if overlap else 0.5 + least)
    assert found <= 1.02 * min(alone, num_workers / 0.5, 1 / 0.020, 1 / 0.015)
    if num_workers == 64:
        assert fleet.bottleneck() == "shards' network"
        assert found == pytest.approx(1 / 0.02, rel=0.05)
    if num_workers == 1:
        assert found == pytest.approx(alone, rel=0.15)


@pytest.mark.parametrize(
    ("changes", "bottleneck", "steps_per_second"),
    [
        ({}, "workers' compute", 50 / 7.2),
        ({"shard_bytes_per_s": 12.5 * MB, "worker_bytes_per_s": 125 * MB}, "shards' network", 12.5 / 18.8),
        ({"worker_bytes_per_s": 12.5 * MB, "overlap": True}, "workers' network", 50 * 12.5 / (2 * 17 * 18.8)),
        ({"shard_cores": 0.02}, "shards' cores", 0.02 / 0.009),
        ({"worker_cores": 0.01, "overlap": True}, "workers' cores", 50 * 0.01 / (17 * 0.007)),
        ({"shared_cores": 1.0}, "cores of the machine", 1 / (17 * 0.016)),
    ],
)
def test_the_bottleneck_is_named_and_sets_the_pace(
    changes: dict[str, Any], bottleneck: str, steps_per_second: float
) -> None:
    fleet = paper(**changes)
    assert fleet.bottleneck() == bottleneck
    assert fleet.limits()[bottleneck] == pytest.approx(steps_per_second)
    found = simulate(fleet).steps_per_second
    # The exchange of a worker that does not overlap comes on top of its computing.
    # A worker's first pulls begin during its last pushes.
    assert 0.8 * steps_per_second <= found <= 1.15 * steps_per_second


def test_a_worker_that_waits_for_its_own_exchange_is_the_bottleneck_though_no_line_is_full() -> None:
    """1 Gbit/s a host: 7.2 s of computing, then 5.1 s on the worker's line; the shards' lines could do 6.6 a second."""
    fleet = paper(shard_bytes_per_s=125 * MB, worker_bytes_per_s=125 * MB)
    assert fleet.limits()["shards' network"] < fleet.limits()["workers' compute"]
    assert fleet.workers_limit() == pytest.approx(50 / (7.2 + 2 * 17 * 18.8 / 125))
    assert fleet.bottleneck() == "workers' compute"
    assert simulate(fleet).steps_per_second == pytest.approx(fleet.workers_limit(), rel=0.12)
    # With overlap the workers' own lines no longer add to their computing, and the shards' do limit.
    overlapped = paper(shard_bytes_per_s=125 * MB, worker_bytes_per_s=125 * MB, overlap=True)
    assert overlapped.bottleneck() == "shards' network"
    assert simulate(overlapped).steps_per_second == pytest.approx(125 / 18.8, rel=0.05)


def test_the_same_seed_gives_the_same_prediction() -> None:
    one, again, other = simulate(paper()), simulate(paper()), simulate(paper(), seed=1)
    assert one.steps_per_second == again.steps_per_second and (one.staleness == again.staleness).all()
    assert one.steps_per_second != other.steps_per_second


def test_fifty_workers_take_about_a_second() -> None:
    begin = time.process_time()
    simulate(paper())
    assert time.process_time() - begin < 10  # a slow machine


def test_overlap_costs_staleness() -> None:
    plain = simulate(paper())
    overlapped = simulate(paper(overlap=True))
    assert plain.staleness_mean == pytest.approx(49, rel=0.05)
    assert overlapped.staleness_mean == pytest.approx(99, rel=0.05), "gradients are pushed one step later"
    assert overlapped.steps_per_second > plain.steps_per_second


def test_constant_times_do_not_spread() -> None:
    fleet = Fleet(4, 1.0, [CallCosts(shard_s=0.001)], [CallCosts(shard_s=0.001)], compute="constant")
    assert simulate(fleet).staleness.nonzero()[0].tolist() == [3]


def test_histograms() -> None:
    histogram = np.bincount([0, 1, 1, 2], minlength=BUCKETS)
    assert mean_of(histogram) == 1.0
    assert (percentile_of(histogram, 0.25), percentile_of(histogram, 0.5), percentile_of(histogram, 1.0)) == (0, 1, 2)
    assert distance(histogram, histogram * 3) == 0.0
    assert distance(histogram, np.bincount([0, 0, 0, 0], minlength=BUCKETS)) == 0.75


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"num_workers": 0}, "0 workers"),
        ({"pulls": []}, "0 to pull from"),
        ({"compute": "normal"}, "'normal'; accepted are constant, lognormal, exponential"),
    ],
)
def test_bad_input(values: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        paper(**values)


def alone(num_workers: int, num_shards: int = 2, **changes: Any) -> Fleet:
    """Workers that compute for about a second, and whose exchange takes no time."""
    return Fleet(num_workers, 1.0, [CallCosts()] * num_shards, [CallCosts()] * num_shards, **changes)


def first(fleet: Fleet, number: int) -> list[Event]:
    return list(itertools.islice(events(fleet), number))


def test_a_worker_computes_pushes_to_all_shards_pulls_from_all_and_begins_again() -> None:
    kinds = [event.kind for event in first(alone(1), 12)]
    step = [Kind.COMPUTED, *[Kind.PUSHED, Kind.PULLED] * 2, Kind.BEGUN]
    assert kinds == step * 2
    overlapped = [event.kind for event in first(alone(1, overlap=True), 4)]
    assert overlapped[:2] == [Kind.COMPUTED, Kind.BEGUN]


def test_workers_that_are_let_in_later_pull_before_they_begin() -> None:
    for overlap in (False, True):
        fleet = paper(num_workers=8, pace=Async(20), overlap=overlap)
        seen, pushes = list(itertools.islice(events(fleet), 12_000)), 0
        first: dict[int, tuple[Kind, int]] = {}
        for event in seen:
            first.setdefault(event.worker, (event.kind, pushes // 17))
            pushes += event.kind is Kind.PUSHED
        assert all(first[worker][0] is Kind.COMPUTED for worker in range(4))
        for worker in range(4, 8):
            kind, version = first[worker]
            due = 20 * (worker - 3)
            assert kind is Kind.PULLED and due <= version <= due + 8, "as soon as enough pushes are complete"
    assert simulate(paper(pace=Async(1000))).steps_per_second == simulate(paper(pace=Async(0))).steps_per_second


def test_events_are_those_of_the_prediction() -> None:
    fleet, pushed = paper(pace=Async(0)), [0] * 17
    counts, versions = np.zeros(BUCKETS, int), {}
    for event in itertools.islice(events(fleet), 100_000):
        if event.kind is Kind.BEGUN:
            versions[event.worker] = versions.get((event.worker, "pulled"), 0)
        elif event.kind is Kind.PULLED and event.shard == 3:
            versions[event.worker, "pulled"] = pushed[3]
        elif event.kind is Kind.PUSHED:
            if event.shard == 3:
                counts[pushed[3] - versions.get(event.worker, 0)] += 1
            pushed[event.shard] += 1
    assert mean_of(counts) == pytest.approx(simulate(fleet).staleness_mean, rel=0.02)


@pytest.mark.parametrize("lead", [0, 2])
def test_no_worker_leads_the_slowest_by_more_than_the_bound(lead: int) -> None:
    fleet = alone(6, pace=Bounded(lead), stragglers=1 / 6, slowdown=9.0)
    begun, most = [0] * 6, 0
    for event in first(fleet, 5000):
        if event.kind is Kind.BEGUN:
            begun[event.worker] += 1
            most = max(most, max(begun) - min(begun))
    assert most == lead + 1, "one more begins when the slowest is about to"
    assert min(begun) > 50


def test_sync_gradients_of_a_round_are_of_one_version_and_backups_come_late() -> None:
    found = simulate(alone(8, pace=Sync(8)), num_steps=2000)
    assert found.staleness.nonzero()[0].tolist() == [0]
    slow = {"stragglers": 0.25, "slowdown": 6.0}
    waits = simulate(alone(8, pace=Sync(8), **slow), num_steps=1000).steps_per_second
    backed = simulate(alone(8, pace=Sync(6, backups=2), **slow), num_steps=1000)
    assert waits == pytest.approx(8 / 6, rel=0.1)
    assert backed.steps_per_second > 3 * waits and backed.staleness.nonzero()[0].max() >= 1


def test_a_cadence_pushes_and_fetches_as_often_as_it_says() -> None:
    kinds = Counter(event.kind for event in first(alone(4, 1, push_every=4, fetch_every=2), 6000))
    assert kinds[Kind.COMPUTED] == pytest.approx(4 * kinds[Kind.PUSHED], rel=0.01)
    assert kinds[Kind.COMPUTED] == pytest.approx(2 * kinds[Kind.PULLED], rel=0.01)


def test_stragglers_set_the_limits() -> None:
    fleet = alone(8, stragglers=0.25, slowdown=4.0)
    assert fleet.limits()["workers' compute"] == fleet.workers_limit() == 6 + 2 / 4
    assert simulate(fleet).steps_per_second == pytest.approx(6.5, rel=0.05)
