"""Start of a chief: with a new job, a resumed one, or one whose shards already hold parameters.

In the last case it continues from its journal, or without one from the newest checkpoint's progress. Until that is
done, calls that depend on the job's state are refused with `NotReady`.

Threads: the chief's main thread.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
from absl import logging

from downpour.proto.errors import CheckpointFailed
from downpour.ps.checkpoint.manifest import Checkpoint
from downpour.ps.checkpoint.shard_file import Damaged
from downpour.ps.policy.pace import most_workers
from downpour.worker.chief.healer import Healer
from downpour.worker.chief.run_folder import RunFolder
from downpour.worker.chief.settings import JobSettings
from downpour.worker.chief.settling import settle
from downpour.worker.chief.shards import Shards
from downpour.worker.chief.state import JobState


def begin(
    settings: JobSettings,
    state: JobState,
    folder: RunFolder,
    shards: Shards,
    healer: Healer,
    initial_values: Callable[[], list[np.ndarray]],
) -> None:
    """Fills the job's empty shards, and restores the chief's state from its journal or a checkpoint.

    Args:
        settings: The job's settings.
        state: The job's state.
        folder: The run's folder.
        shards: The job's shards; their job id is set here.
        healer: Fills empty shards while others hold parameters.
        initial_values: Returns one array a variable.

    Raises:
        ValueError: All checkpoints are damaged where one is needed, or there is none where one is demanded.
    """
    statuses = shards.statuses()
    held = [(i, status.job_id) for i, status in enumerate(statuses) if status.ready]
    shards.job_id, saved = settle(folder, held, settings)
    state.job_id = shards.job_id
    if held:
        with state.changed:
            _recall(state, folder, shards)
        logging.info("the shards hold parameters of job %s already; training continues", shards.job_id)
        healer.look_after()  # fills the empty ones
    elif saved:
        with state.journaled():  # first: a chief restarted meanwhile must not read the older journal
            state.journal_state.resume(saved, time.monotonic())
        shards.restore(saved)
        logging.info("resumed job %s from %s", shards.job_id, saved.directory)
        for change in settings.changes(saved.progress):
            logging.warning("resumed with another job than the checkpoint's: %s", change)
    else:
        values = initial_values()  # first: if this raises, the earlier run must not have been removed
        folder.begin(shards.job_id, overwrites=settings.overwrite)
        shards.initialize(lambda: values)
        logging.info("%d shards initialised for job %s", len(shards), shards.job_id)
        first = most_workers(settings.pace, 0)
        if settings.num_workers > first:
            how = "%d of %d workers train at first, and one more is let in after every %d pushes (pace)"
            logging.info(how, first, settings.num_workers, settings.pace.ramp)
    shards.check_job()
    try:
        shards.check_may_write(folder.checkpoints.url)
    except CheckpointFailed as error:
        if not held:
            raise
        logging.warning("no checkpoint can be written at present: %s", error)
    statuses = shards.statuses()
    with state.changed:
        highest = max(status.incarnation for status in statuses)
        state.coordinator.members.saw_incarnation(highest, goes_on=bool(held or saved))
    healer.spread_rate(statuses)  # before a worker registers


def _recall(state: JobState, folder: RunFolder, shards: Shards) -> None:
    """Restores the journaled state of a job whose shards hold parameters.

    Without a usable journal workers must restart, since their leases are not known; records that they have trained on
    since the newest checkpoint are repeated, and counted in `records_repeated`.

    Raises:
        OtherRecords: The job was begun with other training records.
    """
    known, journal = state.journal_state, folder.journal.read(shards.job_id)
    if journal is not None and journal.get("fingerprint") == shards.layout.fingerprint.hex():
        try:
            known.load(journal, time.monotonic())
            for score in (*known.held, *([known.score] if known.score is not None else [])):
                state.turns.scored(score.step)
            state.overlap.resume(bool(journal.get("overlap")))
            return
        except KeyError as error:
            logging.warning("the journal cannot be used: %s", error.args[0])
    version = max(status.version for status in shards.statuses())
    saved = _newest_progress(folder, shards.job_id)
    if saved is not None:
        known.recall(saved, time.monotonic())
    known.coordinator.saw(version)
    whence = f"the progress in {saved.directory}" if saved else "no progress, as there is no checkpoint"
    logging.warning(
        "there is no journal of this job: the chief continues at step %d with %s; workers restart, and records they "
        "trained on since are repeated and counted", version, whence
    )  # fmt: skip


def _newest_progress(folder: RunFolder, job_id: str) -> Checkpoint | None:
    try:
        return folder.newest(lambda saved: None, job_id)  # its manifest is needed, not its files
    except Damaged as error:
        logging.warning("%s", error)
        return None
