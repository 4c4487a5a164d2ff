"""What a run or one of its processes does, as JSON values: asked of the chief or a shard, or read from the folder.

A run that goes on is described by its chief, whose address is in its folder; one that does not, by its summary, journal
and history. Numbers that are not known are None. Reads only; imports no framework.
"""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import grpc

from downpour.launch.observe import report
from downpour.proto import chief_pb2 as pb
from downpour.proto import chief_pb2_grpc
from downpour.proto import parameter_server_pb2 as ps_pb
from downpour.proto.errors import DownpourError, Unreachable, from_rpc_error
from downpour.proto.rpc.client import Channel
from downpour.proto.security.config import PLAIN, Security
from downpour.proto.security.tls import WrongPeer
from downpour.ps.checkpoint import manifest
from downpour.ps.checkpoint.shard_file import Damaged
from downpour.worker.chief import owner
from downpour.worker.chief.coordinator import Coordinator
from downpour.worker.chief.details import details
from downpour.worker.chief.journal import Journal
from downpour.worker.chief.journal_state import JournalState
from downpour.worker.chief.leases import LeaseTable
from downpour.worker.chief.progress import as_json, finite

_WITHIN_S = 5.0  # for an answer
_SHARD_STATUS = "/downpour.v1.ParameterServer/Status"
FILES = (owner.SUMMARY, owner.JOURNAL, report.HISTORY_FILE, owner.LOCK, owner.LAUNCHER_LOCK)
_SAME_IN_SUMMARY = (
    *("recipe", "seconds", "loss", "staleness_mean", "seconds_per_step", "input_bound", "epochs"),
    *("ended_by", "ended_because", "failure", "best"),
)
_FAULTS = ("records_repeated", "records_skipped", "steps_skipped", "pushes_dropped", "pushes_refused")


def of_folder(run_dir: Path, security: Security = PLAIN) -> dict[str, Any]:
    """Describes the run in a folder; `problem` says why, if its chief cannot be asked.

    Raises:
        ValueError: The folder holds no run.
    """
    if not any((run_dir / name).exists() for name in FILES):
        raise ValueError(f"{run_dir} holds no run; give the folder of one, such as runs/quickstart")
    found: dict[str, Any] = {"run": str(run_dir)}
    chief, launcher = owner.holder(run_dir / owner.LOCK), owner.holder(run_dir / owner.LAUNCHER_LOCK)
    address = owner.read_address(run_dir)
    if chief and address:
        try:
            return of_address(address, security) | found
        except DownpourError as error:
            problem = f"the run belongs to {chief}, and {error}"
            return found | of_files(run_dir) | {"state": "unknown", "problem": problem}
    # With a new summary the run has ended, and its launcher still ends its other processes.
    if chief or (launcher and not owner.has_summary_since(run_dir / owner.LAUNCHER_LOCK)):
        return found | {"state": "starting"}
    return found | of_files(run_dir)


def history(run_dir: Path) -> list[dict[str, Any]]:
    """The entries of a run's history, in the order in which they were written; none if it has no history yet."""
    return report.read_entries(run_dir)[0] if (run_dir / report.HISTORY_FILE).exists() else []


def of_address(address: str, security: Security = PLAIN) -> dict[str, Any]:
    """Describes the run of a chief, or a shard.

    Args:
        address: `host:port` of either.
        security: Credentials of this process.

    Raises:
        Unreachable: Nobody answers there, or somebody else.
        DownpourError: It refuses to answer.
    """
    try:
        return {"run": address, "chief": address, **as_json(_progress(address, security))}
    except grpc.RpcError as error:
        if error.code() is not grpc.StatusCode.UNIMPLEMENTED and not _is_other_role(error):
            raise _refusal(address, error) from None
    try:
        status = _shard_status(address, security)
    except grpc.RpcError as error:
        raise _refusal(address, error) from None
    return {"run": address, **_of_shard(status)}


def is_whole(directory: str) -> bool | None:
    """Whether a checkpoint has an intact manifest, which is written last, and all its files; their bytes are not read.

    Of an object store that is one reading and one listing, at most 5 s.

    Returns:
        None if that cannot be told from here: it is in a folder of another machine, or the store does not answer.
    """
    if "://" not in directory:
        return _is_whole(directory) if Path(directory).is_dir() else None
    found: list[bool | None] = []
    asking = threading.Thread(target=lambda: found.append(_is_whole(directory)), name="is-whole", daemon=True)
    asking.start()  # the clients of stores retry for minutes
    asking.join(_WITHIN_S)
    return found[0] if found else None


def _is_whole(directory: str) -> bool | None:
    try:
        return manifest.load(directory).is_whole()
    except Damaged:
        return False
    except (OSError, ValueError):
        return None


def _progress(address: str, security: Security) -> pb.ProgressReply:
    channel = Channel(address, security, "chief")
    try:
        stub = chief_pb2_grpc.ChiefStub(channel)  # type: ignore[no-untyped-call]
        reply: pb.ProgressReply = stub.Progress(pb.ProgressRequest(detailed=True), timeout=_WITHIN_S)
        return reply
    finally:
        channel.close()


def _shard_status(address: str, security: Security) -> ps_pb.StatusReply:
    channel = Channel(address, security, "ps")
    try:
        call = channel.unary_unary(_SHARD_STATUS, ps_pb.StatusRequest.SerializeToString, ps_pb.StatusReply.FromString)
        reply: ps_pb.StatusReply = call(ps_pb.StatusRequest(), timeout=_WITHIN_S)
        return reply
    finally:
        channel.close()


def _is_other_role(error: grpc.RpcError) -> bool:
    return isinstance(getattr(error, "cause", None), WrongPeer)


def _refusal(address: str, error: grpc.RpcError) -> DownpourError:
    if refusal := from_rpc_error(error):
        return type(refusal)(f"{address}: {refusal}")
    if error.code() is grpc.StatusCode.UNIMPLEMENTED:
        return Unreachable(f"{address} is neither a chief nor a shard; give the address of one, or a run's folder")
    reason = error.details() or error.code().name
    return Unreachable(
        f"{address} does not answer: {reason}; check the address, that it runs, and --tls and --token_file if the job "
        "has them"
    )


def _of_shard(status: ps_pb.StatusReply) -> dict[str, Any]:
    counts = list(status.staleness_histogram)
    pushes = sum(counts)
    return {
        "state": "ready" if status.ready else "empty",
        "shard": status.shard if status.ready else None,
        "job_id": status.job_id,
        "version": status.version,
        "pushes": status.pushes,
        "staleness_mean": sum(i * count for i, count in enumerate(counts)) / pushes if pushes else None,
        "state_bytes": status.state_bytes,
        "faults": {
            name: int(getattr(status, name))
            for name in ("pushes_dropped", "pushes_refused", "pushes_repeated")
            if getattr(status, name)
        },
    }


def of_files(run_dir: Path) -> dict[str, Any]:
    """Describes a run that does not go on: what its journal and history know, and its summary if that is current."""
    found: dict[str, Any] = {"state": "stopped"}
    journal = Journal(run_dir / owner.JOURNAL).read()
    known = _journaled(journal) if journal else None
    if journal and known:
        num_steps = (journal.get("job") or {}).get("num_steps")
        reply = known.coordinator.progress(0.0)
        reply.num_steps = int(num_steps or 0)
        reply.details.CopyFrom(details("", str(journal.get("job_id", "")), known, (), 0.0))
        del reply.details.workers[:]
        found = as_json(reply) | {"state": "stopped", "num_steps": reply.num_steps or None, "seconds_left": None}
        found["seconds"] = known.coordinator.time.seconds_before
    found |= _last_of_history(run_dir)
    summary = _read_summary(run_dir)
    ended = known is None or known.coordinator.time.ended_s is not None or known.coordinator.failure
    if summary and (ended or known is None or known.coordinator.step <= summary["global_steps"]):
        found |= _of_summary(summary)
    elif reason := owner.read_failure(run_dir):
        found |= {"state": "failed", "failure": reason}
    return found


def _journaled(journal: dict[str, Any]) -> JournalState | None:
    """The state that a journal holds; None if it is not one of a job."""
    try:
        leases = LeaseTable(int(journal["coordinator"]["leases"]["num_records"]), 1)
        known = JournalState(Coordinator(0, 1, leases))
        known.load(journal, 0.0)
    except (KeyError, TypeError, ValueError):
        return None
    return known


def _last_of_history(run_dir: Path) -> dict[str, Any]:
    """The newest loss and scores of the history."""
    if not (run_dir / report.HISTORY_FILE).exists():
        return {}
    losses, scores = report.read_history(run_dir)
    found: dict[str, Any] = {}
    if losses:
        found |= {"step": losses[-1]["step"], "loss": finite(losses[-1]["loss"]), "seconds": losses[-1]["seconds"]}
    if scores:
        values = {name: finite(value) for name, value in scores[-1].items() if name not in ("kind", "step", "seconds")}
        found |= {"scores": values, "score_step": scores[-1]["step"]}
    return found


def _read_summary(run_dir: Path) -> dict[str, Any]:
    try:
        summary = json.loads((run_dir / owner.SUMMARY).read_text())
    except (OSError, ValueError):
        return {}
    return summary if isinstance(summary, dict) and "global_steps" in summary else {}


def _of_summary(summary: dict[str, Any]) -> dict[str, Any]:
    lost = sum(summary.get("updates_lost", {}).values())
    faults = {name: summary[name] for name in _FAULTS if summary.get(name)} | ({"updates_lost": lost} if lost else {})
    rate = summary.get("examples_per_second", summary.get("images_per_second"))
    known = {name: summary[name] for name in _SAME_IN_SUMMARY if name in summary}
    return {
        **known,
        "state": "failed" if summary.get("failure") else "done",
        "step": summary["global_steps"],
        "loss": finite(summary.get("loss")),
        "examples_per_second": rate,
        "faults": faults,
        "peak_pss_mb": summary.get("peak_pss_mb"),
    }
