"""What the chief knows of a job beyond its progress: workers, shards, parts of a step, faults. No I/O.

Called with the chief's lock held; `downpour status` calls it with what a journal holds, too.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from downpour.proto import chief_pb2 as pb
from downpour.proto import parameter_server_pb2 as ps_pb
from downpour.worker.chief.admission import has_room
from downpour.worker.chief.coordinator import Coordinator
from downpour.worker.chief.journal_state import JournalState
from downpour.worker.chief.reports import PARTS
from downpour.worker.chief.summary import seconds_per_step, staleness_counts
from downpour.worker.chief.windows import Growth, Windows

# Fields of a shard's status that are passed on.
_SAME = (
    *("version", "pushes", "state_bytes", "pulls", "bytes_received", "bytes_sent", "pushes_waiting"),
    *("memory_bytes", "uptime_seconds", "pushes_refused", "pushes_dropped"),
)

ShardAnswer = tuple[str, ps_pb.StatusReply | None]  # address, and None while it does not answer


def details(
    recipe: str,
    job_id: str,
    known: JournalState,
    shards: Sequence[ShardAnswer],
    now_s: float,
    windows: Windows | None = None,
) -> pb.ProgressReply.Details:
    """Returns the details of a job's progress.

    Args:
        recipe: Name of its recipe.
        job_id: Its id.
        known: Its state.
        shards: The newest answers of the shards, in order.
        now_s: The time, on the coordinator's clock.
        windows: Totals of the shards over the last seconds, by address; see `shard_totals`.
    """
    coordinator = known.coordinator
    reports = coordinator.reports
    seconds = seconds_per_step(reports)
    counts = {
        "updates_lost": sum(loss.updates for loss in known.losses),
        "shards_restored": len(known.losses),
        "records_repeated": coordinator.leases.records_repeated,
        "records_skipped": reports.total(lambda r: r.records_skipped),
        "steps_skipped": reports.total(lambda r: r.steps_skipped),
        "pushes_dropped": reports.total(lambda r: r.pushes_dropped),
        "pushes_refused": sum(status.pushes_refused for _, status in shards if status),
    }
    return pb.ProgressReply.Details(
        recipe=recipe,
        job_id=job_id,
        epochs=coordinator.leases.epochs,
        train_seconds=coordinator.time.train_s(now_s),
        seconds_per_step=seconds if any(seconds.values()) else {},
        score_step=known.score.step if known.score else 0,
        checkpoint=known.checkpoint.directory if known.checkpoint else "",
        checkpoint_step=known.checkpoint.step if known.checkpoint else 0,
        faults={name: int(count) for name, count in counts.items() if count},
        workers=_workers(coordinator, now_s),
        shards=(
            _shard(address, status, windows.growth(address, now_s) if windows else Growth())
            for address, status in shards
        ),
        staleness_histogram=staleness_counts([status for _, status in shards if status]),
        checkpoint_age_seconds=-1.0,
    )


def shard_totals(status: ps_pb.StatusReply) -> dict[str, float]:
    """What is followed over the last seconds of a shard: `pushes`, bytes, and seconds by part."""
    return {name: getattr(status, name) for name in ("pushes", "bytes_received", "bytes_sent")} | _seconds(status)


def _workers(coordinator: Coordinator, now_s: float) -> Iterator[pb.ProgressReply.Worker]:
    members, kinds, room = coordinator.members, pb.ProgressReply.Worker, has_room(coordinator, now_s)
    for index in sorted({*range(members.num_workers), *members.registered}):
        worker = members.registered.get(index)
        if worker is None:
            yield kinds(index=index, state=kinds.STATE_EXPECTED)
            continue
        lost, report = members.lost(index, now_s), coordinator.reports.of(index, worker.incarnation)
        is_in = room or coordinator.leases.has_admitted(index)
        runs = kinds.STATE_RUNNING if is_in else kinds.STATE_WAITING
        state = kinds.STATE_FINISHED if worker.finished else kinds.STATE_LOST if lost else runs
        recent = coordinator.reports.recent(index, now_s)
        yield kinds(
            index=index,
            state=state,
            host=worker.host,
            incarnation=worker.incarnation,
            steps=report.steps,
            examples=report.examples,
            silent_seconds=max(now_s - worker.last_heard_s, 0.0),
            input_share=report.input_share,
            seconds={part: getattr(report, f"{part}_seconds") for part in PARTS},
            seconds_per_step={part: recent.mean(f"{part}_seconds", "steps") for part in PARTS if recent.rate("steps")},
            examples_per_second=recent.rate("examples"),
            staleness_mean=recent.mean("staleness", "steps"),
            version=report.version,
            bytes_pulled=report.bytes_pulled,
            bytes_pushed=report.bytes_pushed,
        )


def _shard(address: str, status: ps_pb.StatusReply | None, recent: Growth) -> pb.ProgressReply.Shard:
    kinds = pb.ProgressReply.Shard
    if status is None:
        return kinds(address=address, state=kinds.STATE_SILENT)
    counts, seconds = status.staleness_histogram, _seconds(status)
    return kinds(
        address=address,
        state=kinds.STATE_READY if status.ready else kinds.STATE_EMPTY,
        seconds=seconds,
        staleness_mean=sum(i * count for i, count in enumerate(counts)) / max(sum(counts), 1),
        pushes_per_second=recent.rate("pushes"),
        seconds_per_push={part: recent.mean(part, "pushes") for part in seconds if recent.rate("pushes")},
        bytes_received_per_second=recent.rate("bytes_received"),
        bytes_sent_per_second=recent.rate("bytes_sent"),
        **{name: getattr(status, name) for name in _SAME},
    )


def _seconds(status: ps_pb.StatusReply) -> dict[str, float]:
    return {part: getattr(status, f"{part}_seconds") for part in ("receive", "queue", "apply")}
