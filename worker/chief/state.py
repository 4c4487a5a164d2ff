"""State shared by the chief's service, its main thread and its healer, guarded by one condition.

Threads: any. No thread waits for a disk or the network while it holds the condition's lock, except in `hold`, and
before the state is ready, when nothing can be answered.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence

from downpour.proto import chief_pb2 as pb
from downpour.proto import parameter_server_pb2 as ps_pb
from downpour.proto.errors import NotReady
from downpour.ps.layout import Layout
from downpour.worker.chief.coordinator import Coordinator
from downpour.worker.chief.departures import Departures
from downpour.worker.chief.epoch_log import EpochLog
from downpour.worker.chief.journal import Journal
from downpour.worker.chief.journal_state import JournalState
from downpour.worker.chief.leases import LeaseTable
from downpour.worker.chief.membership import Membership
from downpour.worker.chief.overlap import OverlapChoice
from downpour.worker.chief.reactions import Reactions
from downpour.worker.chief.settings import JobSettings
from downpour.worker.chief.training_time import TrainingTime
from downpour.worker.chief.turns import Turns
from downpour.worker.chief.windows import Windows

LOOK_EVERY_S = 1.0
MOST_EVENTS = 200  # that are shown


class JobState:
    """The state of one job.

    Args:
        settings: The job's settings.
        journal: Journal to which the state is written.

    Attributes:
        changed: Guards everything below; notified after every event.
        coordinator: Workers, leases and progress.
        journal_state: The state that goes into the journal.
        departures: Shards that are about to stop.
        layout: Layout of the model's variables; None until the state of an earlier chief has been restored.
        fingerprint: Fingerprint of the layout, set before `layout`.
        job_id: Id of the job, set before `layout`.
        phase: Phase of the job.
        unscored: Checkpoints of epochs that wait for an evaluator, or are being scored, by step.
        turns: Which evaluator scores which checkpoint.
        lease_waits: Whether a worker waits for a lease until an epoch has its checkpoint; set by the service.
        overlap: Whether workers overlap, where the job leaves it open; only then updated.
        evaluator_heard_s: When an evaluator last requested a checkpoint; None if none has.
        checkpoint_s: When this chief's last checkpoint was complete; None before its first.
        events: What has happened, for people; the newest.
        happened: Kind and text of what is to be added to `events`.
        shard_windows: Totals of every shard over the last seconds, by address; see `details.shard_totals`.
        shards: Address of every shard and its newest answer, None while it does not answer; none before the first look.
    """

    def __init__(self, settings: JobSettings, journal: Journal) -> None:
        self.changed = threading.Condition()
        self.coordinator = Coordinator(
            settings.num_steps,
            settings.checkpoint_every_steps,
            LeaseTable(settings.num_records, settings.lease_records),
            Membership(settings.num_workers, settings.lease_s, pace=settings.pace),
            TrainingTime(settings.max_train_s),
            epochs=EpochLog(
                settings.epochs,
                settings.checkpoint_every_epoch,
                settings.expects_evaluator,
                settings.num_workers,
                settings.num_evaluators,
            ),
        )
        self.unscored: list[pb.NextCheckpointReply] = []
        self.turns = Turns(settings.lease_s)
        self.lease_waits = False
        counted = "epochs" if settings.checkpoint_every_epoch else "scored checkpoints"
        reactions = Reactions(settings.callbacks, settings.epochs, counted)
        self.journal_state = JournalState(self.coordinator, reactions=reactions)
        self.departures = Departures()
        self.layout: Layout | None = None
        self.fingerprint = b""
        self.job_id = ""
        self.phase = pb.ProgressReply.STATE_PREPARING
        self.overlap = OverlapChoice()
        self.evaluator_heard_s: float | None = None
        self.checkpoint_s: float | None = None
        self.events = deque[pb.ProgressReply.Event](maxlen=MOST_EVENTS)
        self.happened: list[tuple[str, str]] = []
        self.shard_windows = Windows()
        self.shards: Sequence[tuple[str, ps_pb.StatusReply | None]] = ()
        self._job = settings.description.get("job")
        self._journal = journal

    @contextlib.contextmanager
    def journaled(self) -> Iterator[None]:
        """Holds the lock for a change, which is in the journal when the block has ended."""
        with self.changed:
            yield
            number = self._stage()
        self._journal.commit(number)

    def hold(self) -> None:
        """Commits the journal and keeps the lock for good: a later chief would not know of any answer sent after it."""
        self.changed.acquire()
        if self.layout is not None:
            self._journal.commit(self._stage())

    def ready(self) -> Layout:
        """Returns the layout; called with the lock held.

        Raises:
            NotReady: It is not known yet, or the state of an earlier chief is not restored yet.
        """
        if self.layout is None:
            raise NotReady("the chief is still building its model or restoring the state of the job")
        return self.layout

    def enter(self, phase: pb.ProgressReply.State) -> None:
        """Begins a phase."""
        with self.changed:
            self.phase = phase
            self.changed.notify_all()

    def wait(self, condition: Callable[[], bool], seconds: float) -> bool:
        """Waits up to `seconds` for a condition over this state or the time; returns whether it holds."""
        deadline = time.monotonic() + seconds
        with self.changed:
            while not condition() and time.monotonic() < deadline:
                self.changed.wait(LOOK_EVERY_S)
            return condition()

    def _stage(self) -> int:
        about = {"job_id": self.job_id, "fingerprint": self.fingerprint.hex(), "job": self._job}
        about["overlap"] = self.overlap.chosen
        return self._journal.stage(about | self.journal_state.state(time.monotonic()))
