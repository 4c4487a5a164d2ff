"""Trains a job in one process as a fleet of any size would: `simulate`.

`queueing` says when workers compute, push and pull; `one_process` does it, with the job's own step and shards. A step
costs one gradient and one update, however many workers there are. The same job and seed give the same result, bit for
bit.

Not simulated: workers that come and go, callbacks, and waiting for checkpoints.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from downpour.launch.job import Job, mistakes
from downpour.launch.planning import footprint, queueing
from downpour.launch.planning.assumptions import Assumptions, fleet_of, known_costs
from downpour.launch.planning.demand import Costs
from downpour.launch.planning.footprint import Footprint
from downpour.launch.planning.one_process import OneProcess
from downpour.launch.planning.timeline import Timeline, batches
from downpour.launch.planning.trainable import Trainable
from downpour.model.data.prefetch import Prefetch
from downpour.model.vision.metrics import NotFinite
from downpour.proto.errors import JobFailed, NonFinite

NUM_SCORES = 4


@dataclass(frozen=True)
class Point:
    """The state of a simulated training at one moment.

    Attributes:
        step: Updates of every shard.
        examples: Examples trained on.
        seconds: Predicted seconds since the start.
        loss: Mean training loss since the point before.
        scores: Scores of the held-out examples by name, as the evaluator gives them.
    """

    step: int
    examples: int
    seconds: float
    loss: float
    scores: Mapping[str, float]


@dataclass(frozen=True)
class Simulated:
    """Result of a simulated training.

    Attributes:
        num_workers: Workers.
        points: What was scored, in order; the last is of the end.
        staleness: Pushes by staleness, over all shards.
        dropped: Share of the pushes that shards have dropped.
        failure: Why training ended before its last step; "" if it did not.
        digest: SHA-256 of what is scored at the end, the parameters or their average.
    """

    num_workers: int
    points: tuple[Point, ...]
    staleness: tuple[int, ...]
    dropped: float
    failure: str
    digest: str

    @property
    def last(self) -> Point:
        """The state at the end."""
        return self.points[-1]

    @property
    def steps_per_second(self) -> float:
        """Predicted."""
        return self.last.step / self.last.seconds if self.last.seconds else math.inf

    @property
    def staleness_mean(self) -> float:
        """Mean, in pushes."""
        return queueing.mean_of(np.array(self.staleness))


def simulate(
    job: Job,
    num_workers: int,
    num_steps: int = 0,
    seed: int = 0,
    *,
    cluster: Assumptions | None = None,
    core_ms_per_step: float | None = None,
    num_scores: int = NUM_SCORES,
    model: Trainable | None = None,
    on_memory: Callable[[Footprint], None] = lambda needed: None,
    on_point: Callable[[Point], None] = lambda point: None,
) -> Simulated:
    """Trains a job as a number of workers would, in this process.

    Args:
        job: The job. Its number of workers is replaced; its seed is that of initial values and order.
        num_workers: Workers.
        num_steps: Global steps; 0 for those of the job.
        seed: Seed of the times.
        cluster: How long workers compute, and the lines between them and the shards; its number of workers is
            replaced. None: they compute for 1 s, with a spread of 0.1, and an exchange takes no time.
        core_ms_per_step: Core-milliseconds of all shards together for one step; None for none.
        num_scores: How often the held-out examples are scored, at equal distances, the last time at the end.
        model: That of an earlier simulation, which it fits; None to build it.
        on_memory: Called with the memory that is needed, before training.
        on_point: Called after every score.

    Raises:
        ValueError: The job, or a job with so many workers, is refused; or this machine has too little memory.
    """
    cluster = replace(cluster or Assumptions(1, math.inf, 1.0), num_workers=num_workers)
    job = replace(job, cluster=replace(job.cluster, num_workers=num_workers, max_workers=0))
    num_steps = num_steps or job.num_steps
    if num_scores < 1 or num_steps < 1:
        raise ValueError(f"{num_steps} steps and {num_scores} scores; give at least 1 of each")
    model = model or Trainable(job)
    assert model.fits(job)
    layout = model.layout
    costs = Costs() if core_ms_per_step is None else known_costs(job, layout, core_ms_per_step)
    job = model.settled(job)
    predicted = fleet_of(job, layout, costs, cluster)
    job = replace(job, exchange=replace(job.exchange, overlap=predicted.overlap))
    needed = footprint.of(job, layout, instant=core_ms_per_step is None and cluster.gbit == math.inf)
    needed.check()
    on_memory(needed)
    timeline = Timeline(queueing.events(predicted, seed))
    fleet = OneProcess(job, layout, model.values, model.step, model.state)
    due = sorted({math.ceil(num_steps * (i + 1) / num_scores) for i in range(num_scores)})
    points = []
    # An error of the job's own code before the first step is a mistake in that.
    with mistakes.final(lambda: not fleet.num_examples), Prefetch(batches(job, timeline)) as prefetched:
        training = _Training(fleet, timeline, prefetched)
        for step in due:
            training.until(step)
            scores = training.scores(model)
            points.append(Point(fleet.num_steps, fleet.num_examples, training.now, fleet.take_loss(), scores))
            on_point(points[-1])
            if training.failure:
                break
    return Simulated(
        num_workers,
        tuple(points),
        fleet.staleness,
        fleet.dropped,
        training.failure,
        digest_of(fleet.values()),
    )


def digest_of(values: Mapping[str, np.ndarray]) -> str:
    """SHA-256 of values of variables, in the order of their names."""
    digest = hashlib.sha256()
    for name in sorted(values):
        digest.update(name.encode() + np.ascontiguousarray(values[name], np.float32).tobytes())
    return digest.hexdigest()


@dataclass
class _Training:
    """Takes events until a step has been made.

    Attributes:
        now: Time of the last event.
        failure: Why training has ended; "" if it has not.
    """

    fleet: OneProcess
    timeline: Timeline
    batches: Prefetch
    now: float = 0.0
    failure: str = field(default="", init=False)

    def until(self, step: int) -> None:
        """Trains until every shard has made so many updates, or training fails."""
        try:
            while self.fleet.num_steps < step:
                event = self.timeline.next()
                self.now = event.now
                self.fleet.handle(event, self.batches)
        except (JobFailed, NonFinite) as error:
            self.failure = str(error)

    def scores(self, model: Trainable) -> dict[str, float]:
        """Scores the present parameters; without scores training has failed, or there are no held-out examples."""
        if self.failure:
            return {}
        try:
            return model.score(self.fleet.values())
        except NotFinite:
            self.failure = f"the held-out predictions at step {self.fleet.num_steps} are not finite"
            return {}
