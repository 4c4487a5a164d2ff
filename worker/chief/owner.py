"""Ownership of a run folder: a lock that its chief holds until its process ends, and the job that began in it.

    owner.lock      locked by the chief (flock); names its job, host, process and since when
    launcher.lock   locked by the launcher of a local run, from before the chief's start on
                    (a lock's second line: which summary.json was there when its holder began)
    chief.address   host:port of that chief, while it serves
    job.json        the job's id, replaced whole before the first shard is initialised
    failure.txt     why the newest chief or launcher ended, if it was refused or failed

The lock of a process that ends is released, whatever ended it; a suspended one (SIGSTOP) keeps it. On a file system
without locks a warning is logged, and a second chief is not refused. On NFS locks reach other hosts from Linux 2.6.12
on, and the server may keep those of a host that has died for as long as its lease (90 s by default). Object stores have
no locks: a `--checkpoint_dir` there is guarded by the job's id in every checkpoint only.
No threads; the process of a chief or launcher owns an object.
"""

from __future__ import annotations

import contextlib
import datetime
import errno
import fcntl
import json
import os
import secrets
import socket
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from absl import logging

from downpour import files
from downpour.proto.http2.sockets import host_and_port
from downpour.ps.checkpoint.storage import Folder

LOCK, LAUNCHER_LOCK, ADDRESS = "owner.lock", "launcher.lock", "chief.address"
JOURNAL, SUMMARY = "journal.json", "summary.json"
_JOB, _FAILURE = "job.json", "failure.txt"
_ANY_HOST = ("", "0.0.0.0", "::", "[::]")
_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL)
_WAIT_S, _PAUSE_S = 3.0, 0.05  # for an owner that is about to stop, such as the chief of a launcher that was killed


class Lock:
    """An exclusive lock on a file of a run folder, held until `close` or the end of the process.

    Args:
        path: Path of the file; its folder exists.
        role: Role of the holder, for the message of a process that is refused.

    Raises:
        ValueError: Another process holds the lock; the message names it.
    """

    def __init__(self, path: Path, role: str) -> None:
        self._path, self._role = path, role
        self._since = datetime.datetime.now(datetime.UTC).isoformat(" ", "seconds")
        self._summary = _stamp(path.with_name(SUMMARY))
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            _lock(self._descriptor, path)
        except BaseException:
            os.close(self._descriptor)
            raise
        self.note("")

    def note(self, job_id: str) -> None:
        """Writes the holder of the lock and its job into the file, for messages, and which summary was there before."""
        job = f"of job {job_id} " if job_id else ""
        text = f"the {self._role} {job}on {socket.gethostname()}, process {os.getpid()}, since {self._since}\n"
        text += f"{self._summary}\n"
        with contextlib.suppress(OSError):  # the disk may be full
            os.pwrite(self._descriptor, text.encode(), 0)
            os.ftruncate(self._descriptor, len(text.encode()))

    def close(self) -> None:
        """Releases the lock; idempotent."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def check_free(run_dir: Path) -> None:
    """Raises `ValueError` if a chief or launcher owns a run folder, which need not exist."""
    for path in (run_dir / LAUNCHER_LOCK, run_dir / LOCK):
        if path.exists():
            descriptor = os.open(path, os.O_RDWR)
            try:
                _lock(descriptor, path)
            finally:
                os.close(descriptor)


def holder(path: Path) -> str:
    """Describes the process that holds the lock on a file; "" if none does, or there is no such file or no locks."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        return ""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return _lines(descriptor)[0] or "another process"
    except OSError:
        return ""
    finally:
        os.close(descriptor)
    return ""


def has_summary_since(path: Path) -> bool:
    """Whether the run's summary is another than the one that was there when the holder of a lock began.

    That is told by the file itself: the clock may have been set back meanwhile.
    """
    now = _stamp(path.with_name(SUMMARY))
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        return bool(now)
    try:
        return bool(now) and now != _lines(descriptor)[1]
    finally:
        os.close(descriptor)


def write_address(run_dir: Path, host: str, port: int) -> None:
    """Records where the chief of a run serves: `host`, or this machine's name if that is all interfaces, and port."""
    named = socket.gethostname() if host in _ANY_HOST else host
    with contextlib.suppress(OSError):  # the disk may be full; the address is for people only
        files.write(run_dir / ADDRESS, f"{host_and_port(named, port)}\n")


def read_address(run_dir: Path) -> str:
    """Returns `host:port` of the chief of a run, as seen from this machine; "" if none is recorded."""
    try:
        address = (run_dir / ADDRESS).read_text().strip()
    except OSError:
        return ""
    host, _, port = address.rpartition(":")
    return f"127.0.0.1:{port}" if host == socket.gethostname() else address


def remove_address(run_dir: Path) -> None:
    """Removes what `write_address` has written."""
    with contextlib.suppress(OSError):
        (run_dir / ADDRESS).unlink(missing_ok=True)


def write_failure(run_dir: Path, reason: str) -> None:
    """Records why a run was refused or failed, for people; "" removes what an earlier start has recorded."""
    with contextlib.suppress(OSError):  # the disk may be full
        if reason:
            files.write(run_dir / _FAILURE, f"{reason}\n")
        else:
            (run_dir / _FAILURE).unlink(missing_ok=True)


def read_failure(run_dir: Path) -> str:
    """Returns what `write_failure` has recorded; "" if there is nothing."""
    try:
        return (run_dir / _FAILURE).read_text(errors="replace").strip()
    except OSError:
        return ""


@dataclass(frozen=True)
class Identity:
    """The job of a run folder.

    Attributes:
        job_id: Id of the job.
        begun: Whether everything that an earlier run had left in the folder is removed.
        overwrites: Whether the job began with `--overwrite`.
    """

    job_id: str
    begun: bool = True
    overwrites: bool = False


def read_identity(run_dir: Path) -> Identity | None:
    """Reads what `write_identity` wrote; None if there is nothing readable."""
    try:
        found = json.loads((run_dir / _JOB).read_text())
        return Identity(str(found["job_id"]), bool(found["begun"]), bool(found["overwrites"]))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        logging.warning("%s cannot be read (%r)", run_dir / _JOB, error)
        return None


def write_identity(run_dir: Path, identity: Identity) -> None:
    """Replaces the recorded job of a run folder, durably: checkpoints of other jobs may be removed next."""
    files.write(run_dir / _JOB, json.dumps(asdict(identity)), durable=True)


def new_job_id() -> str:
    """Returns a random job id."""
    return secrets.token_hex(8)


def check_new_run(run_dir: Path, checkpoints: Folder) -> None:
    """Raises `ValueError` if a new run would remove what an earlier one has left."""
    left = left_behind(run_dir, checkpoints)
    if left:
        elsewhere = Path(checkpoints.url) != run_dir.absolute() / "checkpoints"
        raise ValueError(
            f"{run_dir} holds another run: {', '.join(left)}; continue it by --resume, remove it by --overwrite, or "
            f"give another --run_dir{' and --checkpoint_dir' * elsewhere}"
        )


def left_behind(run_dir: Path, checkpoints: Folder) -> list[str]:
    """Names what a run has left: checkpoints, complete or not, journal, summary."""
    steps = [name for name in checkpoints.names() if name.startswith("step-")]
    found = [f"{len(steps)} checkpoints in {checkpoints.url}"] if steps else []
    return found + [name for name in (JOURNAL, SUMMARY) if (run_dir / name).exists()]


def the_only_job(held: Iterable[tuple[int, str]]) -> str:
    """Returns the id of the job whose parameters some shards (index, job id) hold.

    Raises:
        ValueError: They hold parameters of several jobs.
    """
    by_id = {job_id: shard for shard, job_id in held}
    if len(by_id) > 1:
        words = ", ".join(f"shard {shard} of job {job_id or 'without an id'}" for job_id, shard in by_id.items())
        raise ValueError(f"the shards hold parameters of different jobs: {words}; give every job its own shards")
    return next(iter(by_id))


def _lines(descriptor: int) -> tuple[str, str]:
    """Who holds a lock, and the stamp of the summary that was there before; "" for what is not written."""
    first, _, second = os.pread(descriptor, 1000, 0).decode(errors="replace").partition("\n")
    return first.strip(), second.strip()


def _stamp(path: Path) -> str:
    """Tells a version of a file from those before, which were replaced whole; "" if there is none."""
    try:
        found = path.stat()
    except OSError:
        return ""
    return f"{found.st_ino} {found.st_mtime_ns} {found.st_size}"


def _lock(descriptor: int, path: Path) -> None:
    deadline = time.monotonic() + _WAIT_S
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() > deadline:
                holder = _lines(descriptor)[0] or "another process"
                raise ValueError(
                    f"{path.parent} belongs to {holder}; wait until it ends, or stop it, or give another --run_dir"
                ) from None
            time.sleep(_PAUSE_S)
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise ValueError(f"cannot lock {path}: {error.strerror}; give another --run_dir") from None
            logging.warning("%s: this file system has no locks; a second chief would not be noticed", path)
            return
