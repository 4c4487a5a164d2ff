"""Which workers may train, where the pace lets them in one after another (`downpour.ps.policy.pace.Async`).

A worker is let in when it asks for its first lease. It may go on then, and a new process of its index may; while it is
lost or has ended, another is let in for it. Pure: no clock, no I/O. Guarded by the chief's lock.
"""

from __future__ import annotations

from downpour.ps.policy.pace import most_workers
from downpour.worker.chief.coordinator import Coordinator

_ASK_AGAIN_S, _MOST_QUESTIONS_PER_S = 0.1, 200  # of a worker that waits, and of all that do


def has_room(job: Coordinator, now_s: float) -> bool:
    """Whether the pace lets in one more worker."""
    training = [index for index, _ in job.members.running(now_s) if job.leases.has_admitted(index)]
    return len(training) < most_workers(job.members.pace, job.step)


def let_in(job: Coordinator, worker: int, incarnation: int, now_s: float) -> float:
    """Lets a worker in if there is room, or if training is over, of which it then hears.

    Returns:
        0 if it is let in; or else the seconds after which it should ask again.

    Raises:
        WorkerSuperseded: A newer incarnation of its index is known.
    """
    job.register(worker, incarnation, "", now_s)
    job.members.heard(worker, now_s)
    if job.leases.has_admitted(worker) or has_room(job, now_s) or job.should_stop(now_s):
        job.leases.admit(worker, incarnation)
        return 0.0
    waiting = sum(not job.leases.has_admitted(index) for index, _ in job.members.running(now_s))
    return max(_ASK_AGAIN_S, waiting / _MOST_QUESTIONS_PER_S)
