"""What a view keeps of the statuses that it sees."""

from __future__ import annotations

from typing import Any

from downpour.launch.observe.terminal.trail import Trail
from tests.launch.observe.statuses import entry, event, status, worker


def seen(trail: Trail, seconds: float, histogram: list[int], **changes: Any) -> list[Any]:
    return trail.add(status(seconds=seconds, step=int(15 * seconds), staleness_histogram=histogram, **changes))


def test_losses_are_those_of_the_history_and_one_each_step_that_is_new() -> None:
    trail = Trail([{"kind": "loss", "loss": 2.0, "step": 1}, {"kind": "score", "accuracy": 1.0}, entry(1, {})])
    for step, loss in ((10, 1.5), (10, 1.5), (20, None), (30, 1.0)):
        trail.add(status(step=step, loss=loss))
    assert trail.losses == [2.0, 1.5, 1.0]
    for step in range(31, 10_000):
        trail.add({"state": "training", "step": step, "loss": float(step)})
    assert len(trail.losses) <= 4000 and trail.losses[0] == 2.0 and trail.losses[-1] == 9999.0


def test_events_come_once_also_when_a_chief_that_was_restarted_gives_their_times_rounded() -> None:
    trail = Trail()
    assert trail.add(status()) == [], "those before the view are no news"
    new = event("worker_lost", 800)
    assert trail.add(status(events=[*status()["events"], new])) == [new]
    again = [one | {"time": round(one["time"], 1)} for one in (*status()["events"], new)]
    assert trail.add(status(events=again)) == []


def test_growing_staleness_is_found_without_a_history() -> None:
    trail, histogram = Trail(), [0] * 20
    for look in range(60):
        histogram[1 if look < 40 else 9] += 50
        seen(trail, 1.0 + look, list(histogram))
    assert [finding.kind for finding in trail.findings] == ["staleness_grows"]
    assert trail.staleness() == [0] * 9 + [400 + 100], "of the last ten seconds or so"


def test_what_is_shown_is_the_staleness_of_the_last_seconds_and_at_first_of_all() -> None:
    trail = Trail()
    seen(trail, 5.0, [10, 5, 0])
    assert trail.staleness() == [10, 5, 0]
    seen(trail, 6.0, [11, 5, 0])
    seen(trail, 7.5, [12, 8, 0])
    assert trail.staleness() == [2, 3]
    seen(trail, 1.0, [1, 0, 0])  # another run, or a clock that went back
    seen(trail, 4.0, [1, 0, 7])
    assert trail.staleness() == [2, 3, 7]


def test_the_time_without_an_answer_begins_with_the_first_that_is_missing() -> None:
    trail = Trail()
    trail.add(status())
    assert [trail.missed(100.0), trail.missed(107.5)] == [0.0, 7.5]
    trail.add(status(workers=[worker(0)]))
    assert trail.missed(200.0) == 0.0
