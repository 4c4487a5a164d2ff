"""What a shard's process holds, and whether new clients get through, looked at all the while by two threads."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import psutil

from tests.strangers.scene import Scene, newcomer

_MB = 1e6
_LOOK_EVERY_S = 0.1
_KILL_BEYOND_MB = 1_000.0  # of growth: the machine is others', too


@dataclass(frozen=True)
class Held:
    """What the process holds at a moment.

    Attributes:
        at: That moment, by `time.monotonic()`.
        rss_mb: Resident memory.
        own_mb: What of it is no page of a file. Not the proportional share: that grows when others end who have mapped
            the same libraries.
        threads: Its threads.
        descriptors: Its open descriptors.
    """

    at: float
    rss_mb: float
    own_mb: float
    threads: int
    descriptors: int


def look(process: psutil.Process) -> Held:
    """At a process.

    Raises:
        psutil.Error: It has ended.
    """
    with process.oneshot():
        memory = process.memory_info()
        own = memory.rss - memory.shared
        return Held(time.monotonic(), memory.rss / _MB, own / _MB, process.num_threads(), process.num_fds())


class Watch:
    """Looks from its start to its end; a context manager.

    Args:
        scene: The shard's.
        knock_every_s: Between two new clients.
        give_up_after_s: Of a new client.

    Attributes:
        samples: What was held, in order.
        newcomers: When each began, by `time.monotonic()`, and how long it took; infinite if it gave up.
        is_killed: Whether the shard grew so large that it was killed here.
    """

    def __init__(self, scene: Scene, knock_every_s: float, give_up_after_s: float) -> None:
        self._scene = scene
        self._knock_every_s, self._give_up_after_s = knock_every_s, give_up_after_s
        self.samples = [look(scene.shard)]
        self.newcomers: list[tuple[float, float]] = []
        self.is_killed = False
        self._ending = threading.Event()
        self._threads = [threading.Thread(target=run) for run in (self._look, self._knock)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ending.set()
        for thread in self._threads:
            thread.join()

    def _look(self) -> None:
        while not self._ending.wait(_LOOK_EVERY_S):
            try:
                self.samples.append(look(self._scene.shard))
            except psutil.Error:  # it has ended
                return
            if self.samples[-1].rss_mb > self.samples[0].rss_mb + _KILL_BEYOND_MB:
                self.is_killed = True
                self._scene.shard.kill()
                return

    def _knock(self) -> None:
        while not self._ending.wait(self._knock_every_s):
            begin = time.monotonic()
            self.newcomers.append((begin, newcomer(self._scene, self._give_up_after_s)))


def wait_for(process: psutil.Process, is_back: Callable[[Held], bool], within_s: float) -> Held:
    """Looks until it is as wanted, or time is over; what was seen last."""
    end = time.monotonic() + within_s
    while not is_back(now := look(process)) and now.at < end:
        time.sleep(_LOOK_EVERY_S)
    return now
