"""What a chief that is started again goes on from: its journal, or without one the newest checkpoint's progress.

Called before the chief answers anybody; it holds its lock around the state.
"""

from __future__ import annotations

import time

from absl import logging

from downpour.proto import chief_pb2 as pb
from downpour.ps.checkpoint.manifest import Checkpoint, Damaged
from downpour.worker.chief.known import Known
from downpour.worker.chief.run_folder import RunFolder
from downpour.worker.chief.shards import Shards


def recall(known: Known, folder: RunFolder, shards: Shards) -> None:
    """Fills in what is known of a job whose shards hold parameters.

    Without a journal that can be used, workers must start anew, since their leases are not known; what they have
    trained on since the newest checkpoint is done again, and counted in `records_repeated`.

    Raises:
        OtherRecords: The job was begun with other training records.
    """
    journal = folder.journal(shards.job_id)
    if journal is not None and journal.get("fingerprint") == shards.layout.fingerprint.hex():
        try:
            known.load(journal, time.monotonic())
            return
        except KeyError as error:
            logging.warning("the journal cannot be used: %s", error.args[0])
    version = max(status.version for status in shards.statuses())
    saved = _newest_progress(folder, shards.job_id)
    if saved is not None:
        known.coordinator.load(saved.progress["coordinator"], time.monotonic())
        known.checkpoint = pb.NextCheckpointReply(directory=saved.directory, step=saved.step)
    known.coordinator.saw(version)
    whence = f"the progress in {saved.directory}" if saved else "no progress, as there is no checkpoint"
    logging.warning(
        "there is no journal of this job: the chief goes on at step %d with %s; workers start anew, and what they have "
        "trained on since then is repeated and counted", version, whence
    )  # fmt: skip


def _newest_progress(folder: RunFolder, job_id: str) -> Checkpoint | None:
    try:
        return folder.newest(lambda saved: None, job_id)  # its manifest is needed, not its files
    except Damaged as error:
        logging.warning("%s", error)
        return None
