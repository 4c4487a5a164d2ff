"""Decides which job continues or begins in a run folder, and what empty shards begin with."""

from __future__ import annotations

from collections.abc import Sequence

from absl import logging

from downpour.ps.checkpoint.manifest import Checkpoint
from downpour.ps.checkpoint.shard_file import Damaged
from downpour.worker.chief import owner
from downpour.worker.chief.owner import SUMMARY, Identity
from downpour.worker.chief.run_folder import RunFolder
from downpour.worker.chief.settings import JobSettings


def settle(folder: RunFolder, held: Sequence[tuple[int, str]], settings: JobSettings) -> tuple[str, Checkpoint | None]:
    """Decides which job continues or begins, and what empty shards begin with; removes no good checkpoint.

    Args:
        folder: The run's folder.
        held: Index and job id of every shard that holds parameters.
        settings: The job's settings.

    Returns:
        The job's id; and, if no shard holds parameters, a checkpoint, or None for initial values.

    Raises:
        ValueError: The shards hold parameters of another job than this folder's; or there is no checkpoint to resume
            from; or a new run would remove an earlier one.
    """
    return (_held_job(folder, held, settings), None) if held else _first_state(folder, settings)


def _held_job(folder: RunFolder, held: Sequence[tuple[int, str]], settings: JobSettings) -> str:
    """Returns the id of the job whose parameters some shards hold, which must be the job of this folder."""
    job_id, known = owner.the_only_job(held), _noted(folder)
    mine = known.job_id if known else settings.job_id
    if not job_id or job_id != mine:
        here = f"{folder.path} is the folder of {f'job {mine}' if mine else 'no job'}"
        lost = "" if known else f"; if its folder is lost, --job_id={job_id} lets this one take its place"
        raise ValueError(
            f"shard {held[0][0]} holds parameters of job {job_id or 'without an id'}, and {here}; give the "
            f"--run_dir of the job that these shards train, or empty shards{lost}"
        )
    if settings.job_id not in ("", job_id) and settings.resume == "no":
        raise ValueError(
            f"shard {held[0][0]} holds parameters of job {job_id}, and a new run was asked for; continue that job "
            "by --resume, or give empty shards"
        )
    folder.remember(known or Identity(job_id))
    return job_id


def _first_state(folder: RunFolder, settings: JobSettings) -> tuple[str, Checkpoint | None]:
    """Returns the job's id, and a checkpoint or None for initial values; no shard holds parameters."""
    known = _identity(folder)
    again = known is not None and _goes_on(folder, known, settings)
    only = known.job_id if known is not None and again and settings.resume == "no" else ""
    saved = folder.resume("if_any" if only else settings.resume, only)
    if saved is not None:
        mine = saved.specification.job_id or (known.job_id if known else settings.job_id) or owner.new_job_id()
        folder.remember(Identity(mine, overwrites=known is not None and again and known.overwrites))
        return mine, saved
    if known is not None and again:
        return known.job_id, None
    if not settings.overwrite:
        owner.check_new_run(folder.path, folder.checkpoints)
    return settings.job_id or owner.new_job_id(), None


def _noted(folder: RunFolder) -> Identity | None:
    """Returns the folder's job as recorded in its identity, else as named in the journal; None without either."""
    known = owner.read_identity(folder.path)
    if known is None:
        job_id = (folder.journal.read() or {}).get("job_id", "")
        known = Identity(str(job_id)) if job_id else None
    return known


def _identity(folder: RunFolder) -> Identity | None:
    """Returns the folder's job as `_noted` does, else as named in the newest checkpoint."""
    known = _noted(folder)
    if known is None and (saved := _newest_manifest(folder)):
        job_id = saved.specification.job_id
        known = Identity(job_id) if job_id else None
    return known


def _newest_manifest(folder: RunFolder) -> Checkpoint | None:
    """Returns the newest checkpoint whose manifest can be read; its files are not checked."""
    try:
        return folder.newest(lambda saved: None)
    except Damaged as error:
        logging.warning("%s", error)
        return None


def _goes_on(folder: RunFolder, known: Identity, settings: JobSettings) -> bool:
    """Whether a chief that finds empty shards continues the folder's job, since it has been restarted."""
    if not known.begun:
        return False
    if settings.job_id == known.job_id:
        return True
    if (folder.path / SUMMARY).exists():
        return False
    if settings.resume == "if_any":
        return True
    if settings.job_id:
        return False
    return (settings.overwrite and known.overwrites) or not owner.left_behind(folder.path, folder.checkpoints)
