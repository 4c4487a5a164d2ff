"""Carries faults out and makes sure that each of them happened.

Called by the main thread only, again and again (`Striker.tick`). A fault that finds its target gone, or busy with
another fault, waits for it; one that has waited too long counts as not fired.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import psutil

from tests.chaos.proxy import Proxies
from tests.chaos.schedule import CUT, KILL, Fault

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
    """

    fault: Fault
    due_s: float
    begun_s: float | None = None
    fired: bool = False
    ended_s: float | None = None

    def __str__(self) -> str:
        """One line of a log."""
        fault = self.fault
        what = "" if self.fired else "  DID NOT FIRE"
        return f"{fault.at_s:7.1f} s  {fault.kind:<9} {fault.target:<9} {fault.duration_s:4.1f} s{what}"


class Striker:
    """Carries a schedule out.

    Args:
        faults: In the order of their times.
        pids: Gives the process ids of what is running, by name.
        proxies: By the names of their servers.
        on_end: Is told of every strike that is over.

    Attributes:
        strikes: What has come due.
    """

    def __init__(
        self,
        faults: Sequence[Fault],
        pids: Callable[[], Mapping[str, int]],
        proxies: Proxies,
        on_end: Callable[[Strike], None] = lambda strike: None,
    ) -> None:
        self.strikes: list[Strike] = []
        self._faults, self._pids, self._proxies, self._on_end = list(faults), pids, proxies, on_end
        self._processes: dict[int, psutil.Process] = {}  # struck ones, by the id of their strike
        self._before: dict[int, int] = {}  # connections struck before, by the id of the strike

    def tick(self, at_s: float) -> None:
        """Begins what is due, looks after what goes on, ends what has lasted long enough."""
        while self._faults and self._faults[0].at_s <= at_s:
            self.strikes.append(Strike(self._faults.pop(0), time.monotonic()))
        busy = {_place(strike) for strike in self.strikes if strike.ended_s is None and strike.begun_s is not None}
        for strike in self.strikes:
            if strike.ended_s is not None:
                continue
            if strike.begun_s is None and _place(strike) not in busy and self._begin(strike):
                strike.begun_s = time.monotonic()
            if strike.begun_s is None:
                if time.monotonic() > strike.due_s + _FIRE_WITHIN_S:
                    self._over(strike)
                continue
            busy.add(_place(strike))
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

    def _begin(self, strike: Strike) -> bool:
        fault = strike.fault
        if not fault.on_process:
            self._before[id(strike)] = self._proxies.struck(fault.kind, fault.target)
            self._proxies.begin(fault.kind, fault.target)
            return True
        pid = self._pids().get(fault.target)
        try:
            process = psutil.Process(pid) if pid else None
            if process is None or process.status() in (psutil.STATUS_ZOMBIE, psutil.STATUS_STOPPED):
                return False
            self._processes[id(strike)] = process
            if fault.kind == KILL:
                process.kill()
            else:
                process.suspend()
        except psutil.NoSuchProcess:
            return False
        return True

    def _goes_on(self, strike: Strike) -> bool:
        """Notes whether it has fired; returns whether it is to end."""
        fault = strike.fault
        assert strike.begun_s is not None
        lasted_s = time.monotonic() - strike.begun_s
        if fault.kind == KILL:
            process = self._processes[id(strike)]
            strike.fired = strike.fired or not _runs(process)
            return self._pids().get(fault.target) not in (None, process.pid) or lasted_s > _FIRE_WITHIN_S
        if fault.on_process:
            strike.fired = strike.fired or _status(self._processes[id(strike)]) == psutil.STATUS_STOPPED
            return lasted_s >= fault.duration_s
        if fault.kind == CUT and not strike.fired:
            self._proxies.begin(CUT, fault.target)
        strike.fired = self._proxies.struck(fault.kind, fault.target) > self._before[id(strike)]
        return (strike.fired and lasted_s >= fault.duration_s) or lasted_s > _FIRE_WITHIN_S

    def _end(self, strike: Strike) -> None:
        if strike.begun_s is not None:
            if not strike.fault.on_process:
                self._proxies.calm(strike.fault.target)
            elif strike.fault.kind != KILL and _runs(self._processes[id(strike)]):
                self._processes[id(strike)].resume()
        self._over(strike)

    def _over(self, strike: Strike) -> None:
        strike.ended_s = time.monotonic()
        self._on_end(strike)


def _place(strike: Strike) -> tuple[bool, str]:
    """One fault at a time strikes a process, and one its proxy."""
    return strike.fault.on_process, strike.fault.target


def _runs(process: psutil.Process) -> bool:
    return _status(process) not in ("", psutil.STATUS_ZOMBIE)


def _status(process: psutil.Process) -> str:
    """As psutil names it; empty once the process is gone."""
    try:
        return str(process.status()) if process.is_running() else ""
    except psutil.NoSuchProcess:
        return ""
