"""One attack beside a training: undisturbed and attacked slices in turn, what was seen, and what of it is too much."""

from __future__ import annotations

import collections
import contextlib
import itertools
import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from tests.strangers.attacks import Attack
from tests.strangers.scarcity import few_descriptors, few_threads
from tests.strangers.scene import Scene, Training, newcomer
from tests.strangers.watch import Held, Watch, wait_for
from tests.strangers.ways import Way

MIN_SPEED = 0.95  # of undisturbed
MAX_LOG_LINES = 100
MAX_NEWCOMER_S = 5.0
MORE_LEFT = 2  # threads or descriptors: the pool may have grown for the training's own calls

_BACK_WITHIN_S = 20.0
_KNOCK_EVERY_S, _GIVE_UP_AFTER_S = 1.0, 8.0
_FEW = 100  # threads or descriptors that the shard may have more
_RECOVERY_S = 1.0  # at the beginning of an undisturbed slice, which does not count


@dataclass(frozen=True)
class Slice:
    """A part of the time, by `time.monotonic()`."""

    begin: float
    end: float
    is_attacked: bool


@dataclass
class Found:
    """What was seen of one attack.

    Attributes:
        attack: Its name.
        way: Of coming; its name.
        undisturbed: Steps in a second.
        attacked: The same, while it lasted.
        speed: Median of the ratios of attacked slices to the undisturbed ones beside them.
        longest_undisturbed_s: Step of a worker.
        longest_attacked_s: The same, while it lasted or just afterwards.
        growth_mb: Of the shard's resident memory, at most.
        own_growth_mb: The same, without pages of files.
        threads: Before, at most, and afterwards.
        descriptors: The same.
        log_lines: That the shard wrote.
        newcomer_s: The slowest new client that came while it lasted; infinite if one gave up, or none came.
        newcomer_after_s: The slowest of those that came afterwards.
        num_newcomers: That came while it lasted.
        done: What the stranger did, and what it was answered.
        failures: What is too much, or too little.
    """

    attack: str
    way: str
    undisturbed: float = 0.0
    attacked: float = 0.0
    speed: float = math.nan
    longest_undisturbed_s: float = 0.0
    longest_attacked_s: float = 0.0
    growth_mb: float = 0.0
    own_growth_mb: float = 0.0
    threads: tuple[int, ...] = ()
    descriptors: tuple[int, ...] = ()
    log_lines: int = 0
    newcomer_s: float = 0.0
    newcomer_after_s: float = 0.0
    num_newcomers: int = 0
    done: dict[str, float] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)

    def result(self) -> dict[str, Any]:
        """As JSON can hold it: what is infinite or was not measured is None."""
        return {key: _plain(value) for key, value in asdict(self).items()}


def measure(scene: Scene, attack: Attack, way: Way, seconds: float, slice_s: float, rest_s: float) -> Found:
    """Attacks, and ends the training.

    Args:
        scene: Which has just been opened.
        attack: What is done.
        way: Of coming.
        seconds: Of attack, all slices together.
        slice_s: Of one slice.
        rest_s: Of the undisturbed ones around them.
    """
    found = Found(attack.name, way.name)
    num_lines = scene.num_log_lines()
    with scarcity(scene, attack), Watch(scene, _KNOCK_EVERY_S, _GIVE_UP_AFTER_S) as watch:
        slices, done = _take_turns(scene, attack, way, watch, round(seconds / slice_s), slice_s, rest_s)
    found.done = dict(done)
    _take_held(found, scene, watch, slices)
    found.log_lines = scene.num_log_lines() - num_lines
    _take_newcomers(found, scene, watch, slices)
    training = scene.end_training()
    _take_steps(found, training, slices)
    found.failures += failures(found, attack, training, seconds)
    return found


def scarcity(scene: Scene, attack: Attack) -> contextlib.AbstractContextManager[None]:
    """Makes the shard short of what the attack wants it to be short of."""
    if attack.scarce == "threads":
        return few_threads(scene.shard.pid, _FEW)
    if attack.scarce == "descriptors":
        return few_descriptors(scene.shard.pid, _FEW)
    return contextlib.nullcontext()


def _take_turns(
    scene: Scene, attack: Attack, way: Way, watch: Watch, number: int, slice_s: float, rest_s: float
) -> tuple[list[Slice], collections.Counter[str]]:
    """So many attacked slices with undisturbed ones around them, and what the stranger did in all."""
    slices, done = [_rest(rest_s)], collections.Counter[str]()
    for _ in range(number):
        begin = time.monotonic()
        scene.attack(attack, way)
        time.sleep(slice_s)
        done.update(scene.rest())
        slices += [Slice(begin, time.monotonic(), True), _rest(rest_s)]
        if watch.is_killed:
            break
    return slices, done


def _rest(seconds: float) -> Slice:
    begin = time.monotonic()
    time.sleep(seconds)
    return Slice(begin, time.monotonic(), False)


def _take_held(found: Found, scene: Scene, watch: Watch, slices: Sequence[Slice]) -> None:
    """Memory, threads and descriptors: before, at most, and afterwards."""
    calm = [one for one in watch.samples if one.at < slices[0].end]
    threads, descriptors = min(one.threads for one in calm), min(one.descriptors for one in calm)
    found.growth_mb = max(one.rss_mb for one in watch.samples) - max(one.rss_mb for one in calm)
    found.own_growth_mb = max(one.own_mb for one in watch.samples) - max(one.own_mb for one in calm)

    def is_back(now: Held) -> bool:
        return now.threads <= threads + MORE_LEFT and now.descriptors <= descriptors + MORE_LEFT

    if scene.is_running():
        after = wait_for(scene.shard, is_back, _BACK_WITHIN_S)
    else:
        found.failures.append("the shard was killed for its memory" if watch.is_killed else "the shard has ended")
        after = watch.samples[-1]
    found.threads = threads, max(one.threads for one in watch.samples), after.threads
    found.descriptors = descriptors, max(one.descriptors for one in watch.samples), after.descriptors


def _take_newcomers(found: Found, scene: Scene, watch: Watch, slices: Sequence[Slice]) -> None:
    def of(attacked: bool) -> list[float]:
        parts = [one for one in slices[1:] if one.is_attacked == attacked]
        return [took_s for at, took_s in watch.newcomers if any(one.begin <= at < one.end for one in parts)]

    during, after = of(True), [*of(False), newcomer(scene, _GIVE_UP_AFTER_S)]
    found.newcomer_s, found.newcomer_after_s = max(during, default=math.inf), max(after)
    found.num_newcomers = len(during)


def _take_steps(found: Found, training: Training, slices: Sequence[Slice]) -> None:
    """Steps in a second, and the longest step, of undisturbed and of attacked slices."""
    rates = [_rate(training, one) for one in slices]
    calm, attacked = rates[::2], rates[1::2]
    found.undisturbed, found.attacked = float(np.mean(calm)), float(np.mean(attacked))
    if len(calm) == len(attacked) + 1:
        beside = [(before + after) / 2 for before, after in itertools.pairwise(calm)]
        # A training that stands still in peace gives no ratio, which fails.
        found.speed = float(np.median([a / b if b else math.nan for a, b in zip(attacked, beside, strict=True)]))
    # A step that an attack has held up may end after it.
    is_late = training.ends >= slices[1].begin
    found.longest_attacked_s = float(max(training.seconds[is_late], default=math.inf))
    found.longest_undisturbed_s = float(max(training.seconds[~is_late & (training.ends >= slices[0].begin)]))


def _rate(training: Training, one: Slice) -> float:
    begin = one.begin if one.is_attacked else one.begin + min(_RECOVERY_S, (one.end - one.begin) / 4)
    return float(((training.ends >= begin) & (training.ends < one.end)).sum() / (one.end - begin))


def failures(found: Found, attack: Attack, training: Training, seconds: float) -> list[str]:
    """What is not as it must be, in words."""
    _, _, threads_left = found.threads
    checks = {
        f"steps/s fell to {found.speed:.2f} of undisturbed": not found.speed >= MIN_SPEED,
        f"memory grew by {found.growth_mb:.0f} MB": found.growth_mb > attack.growth_mb,
        f"{threads_left - found.threads[0]} threads left": threads_left > found.threads[0] + MORE_LEFT,
        f"{found.descriptors[2] - found.descriptors[0]} descriptors left": (
            found.descriptors[2] > found.descriptors[0] + MORE_LEFT
        ),
        f"{found.log_lines} lines of log": found.log_lines >= MAX_LOG_LINES,
        f"a new client waited {found.newcomer_s:.1f} s": attack.lets_in and found.newcomer_s > MAX_NEWCOMER_S,
        f"a new client waited {found.newcomer_after_s:.1f} s afterwards": found.newcomer_after_s > MAX_NEWCOMER_S,
        f"{len(training.ends)} pushes acknowledged, {training.applied} applied": (
            len(training.ends) != training.applied or not training.is_exact
        ),
    }
    return [
        *(text for text, is_bad in checks.items() if is_bad),
        *missing(attack, found.done, seconds),
        *training.errors,
    ]


def missing(attack: Attack, done: dict[str, float], seconds: float) -> list[str]:
    """Why an attack did not happen as described, if so."""
    connections, frames = done.get("connections", 0), done.get("frames", 0)
    found = []
    if connections < attack.num_connections:
        found.append(f"only {connections:.0f} connections of {attack.num_connections}")
    if frames < attack.frames_per_s * seconds:
        found.append(f"only {frames:.0f} frames in {seconds:.0f} s")
    return found


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, 3) if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    return value
