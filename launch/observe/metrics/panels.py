"""What the Grafana dashboard shows: rows of panels, each with its PromQL. Pure.

Every panel has a description, which Grafana shows beside its title. Queries keep no label that a restart changes, such
as the address, so that a shard or worker stays one line; where there is one line each, the legend is a table with the
highest on top, or the lowest where that is the one in trouble, which is readable with any number of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

_RATE = "[$__rate_interval]"
_PARTS = f'rate(downpour_job_worker_part_seconds_total{{RUN,part=~"input|compute|wait"}}{_RATE})'
_STEPS = f"sum by (JOB, worker) (rate(downpour_job_worker_steps_total{{RUN}}{_RATE}))"
_ACTIVITY = "downpour_shard_activity_seconds_total"
_PUSHES = f"rate(downpour_shard_pushes_total{{RUN}}{_RATE})"
_STALENESS = f"sum by (JOB, le) (rate(downpour_shard_staleness_bucket{{RUN}}{_RATE}))"
_ANSWERED = ',grpc_method!~".*/NextCheckpoint"'
_DURATION = f"sum by (JOB, le, grpc_method) (rate(grpc_server_call_duration_seconds_bucket{{RUN{_ANSWERED}}}{_RATE}))"
_CALLS = f"sum by (JOB, grpc_status) (rate(grpc_server_call_duration_seconds_count{{RUN}}{_RATE}))"


@dataclass(frozen=True)
class Panel:
    """One panel.

    Attributes:
        title: Its title.
        text: What it shows, and what to do about it.
        queries: (PromQL, legend) of each query; `RUN` stands for the selector of the run, `JOB` for the labels that
            tell jobs apart.
        unit: Grafana's name of the unit.
        width: Columns of 24.
        kind: Grafana's type of panel: `timeseries`, or of present values only: `stat`, `bargauge`.
        stacked: Whether series are stacked.
        from_zero: Whether the axis begins at zero.
        up_to: The axis goes up to this at least, in the unit; None for no such limit.
        ranked: Which present values are first, where the legend is a table of them: those that want attention, since
            of many it shows nine before one scrolls.
        right: Legend of the series whose axis is the right one.
    """

    title: str
    text: str
    queries: Sequence[tuple[str, str]]
    unit: str = "short"
    width: int = 8
    kind: str = "timeseries"
    stacked: bool = False
    from_zero: bool = True
    up_to: float | None = None
    ranked: Literal["", "highest", "lowest"] = ""
    right: str = ""


def _stat(title: str, text: str, *queries: tuple[str, str], unit: str = "short") -> Panel:
    return Panel(title, text, queries, unit, 4, "stat")


ROWS: dict[str, Sequence[Panel]] = {
    "Job": (
        _stat(
            "State",
            "State of the job, as the chief says. No data: the chief does not answer.",
            ("downpour_job_state{RUN} == 1", "{{state}}"),
        ),
        _stat(
            "Done",
            "Global steps done, of all.",
            ("downpour_job_step{RUN} / downpour_job_steps{RUN}", ""),
            unit="percentunit",
        ),
        _stat(
            "Time left",
            "At the present rate. No data when training is over, or before the rate is known.",
            ("downpour_job_left_seconds{RUN}", ""),
            unit="s",
        ),
        _stat(
            "Since the checkpoint",
            "Time since the newest checkpoint was complete: what a lost machine would cost.",
            ("downpour_job_checkpoint_age_seconds{RUN}", ""),
            unit="s",
        ),
        _stat(
            "Workers",
            "Those that report, and those that did and are silent. Others have not come, wait, or have finished.",
            ('sum(downpour_job_worker_state{RUN,state="running"})', "running"),
            ('sum(downpour_job_worker_state{RUN,state="lost"})', "lost"),
        ),
        _stat(
            "Shards",
            "Those that answer the chief and hold parameters, and the others, for which the job waits.",
            ('sum(downpour_job_shard_state{RUN,state="ready"})', "ready"),
            ('sum(downpour_job_shard_state{RUN,state!="ready"})', "not ready"),
        ),
        Panel(
            "Loss",
            "Mean over the last reports of all workers.",
            [("max by (JOB) (downpour_job_loss{RUN})", "loss")],
            from_zero=False,
        ),
        Panel(
            "Scores",
            "Of the newest scored checkpoint, on held-out examples.",
            [("max by (JOB, score) (downpour_job_score{RUN})", "{{score}}")],
            from_zero=False,
        ),
        Panel(
            "Throughput",
            "Over the last seconds, of all workers together: examples a second on the left axis, steps on the right.",
            [
                ("max by (JOB) (downpour_job_examples_per_second{RUN})", "examples/s"),
                ("max by (JOB) (downpour_job_steps_per_second{RUN})", "steps/s"),
            ],
            right="steps/s",
        ),
        Panel(
            "Staleness",
            "Updates between the pull that a push was computed from and the push. About the number of workers less one "
            "is usual; growth means that some workers or shards have become slower.",
            [
                ("max by (JOB) (downpour_job_staleness_mean{RUN})", "mean"),
                (f"ceil(histogram_quantile(0.5, {_STALENESS}))", "median"),  # of whole numbers: no value is between
                (f"ceil(histogram_quantile(0.99, {_STALENESS}))", "99 %"),
            ],
        ),
        Panel(
            "Learning rate",
            "At this step: the schedule's, and what callbacks made of it.",
            [("max by (JOB) (downpour_job_learning_rate{RUN})", "learning rate")],
        ),
        Panel(
            "Faults",
            "So far, by kind; `updates_lost` counts updates that no checkpoint had.",
            [("max by (JOB, kind) (downpour_job_faults_total{RUN})", "{{kind}}")],
            "locale",
            up_to=1,
            ranked="highest",
        ),
    ),
    "Workers": (
        Panel(
            "Where a step's time goes",
            "Share of all workers' time: input is waiting for data, wait is waiting for the exchange. Where input has "
            "more than a fifth, the input is the bottleneck.",
            [(f"sum by (JOB, part) ({_PARTS}) / on (JOB) group_left () sum by (JOB) ({_PARTS})", "{{part}}")],
            "percentunit",
            stacked=True,
            up_to=1,
        ),
        Panel(
            "Seconds a step by worker",
            "A line far above the others is a slow worker; the panel beside shows its slowest part.",
            [(f"sum by (JOB, worker) ({_PARTS}) / {_STEPS}", "worker {{worker}}")],
            "s",
            ranked="highest",
        ),
        Panel(
            "Longest parts of steps now",
            "The six longest of all workers: input is its data, compute its processor or GPU, wait the exchange.",
            [
                (
                    f"sort_desc(topk(6, sum by (JOB, worker, part) ({_PARTS}) / on (JOB, worker) group_left () "
                    f"{_STEPS} < Inf))",
                    "worker {{worker}} {{part}}",
                )
            ],
            "s",
            kind="bargauge",
        ),
        Panel(
            "Examples a second by worker",
            "Trained on by each worker; the slowest is on top of the table. A worker without a line has not begun.",
            [
                (
                    f"sum by (JOB, worker) (rate(downpour_job_worker_examples_total{{RUN}}{_RATE}))",
                    "worker {{worker}}",
                )
            ],
            ranked="lowest",
        ),
        Panel(
            "Last heard",
            "Time since each worker's last report, which comes once a second.",
            [("max by (JOB, worker) (downpour_job_worker_silent_seconds{RUN})", "worker {{worker}}")],
            "s",
            ranked="highest",
        ),
        Panel(
            "Bytes of workers",
            "Pulled and pushed, of all workers together; the lines lie on each other where both take the same bytes.",
            [
                (f"sum by (JOB) (rate(downpour_worker_pulled_bytes_total{{RUN}}{_RATE}))", "pulled"),
                (f"sum by (JOB) (rate(downpour_worker_pushed_bytes_total{{RUN}}{_RATE}))", "pushed"),
            ],
            "binBps",
        ),
    ),
    "Shards": (
        Panel(
            "Time of a push by shard",
            "Waiting in the queue and being applied. A line far above the others is a hot shard.",
            [
                (
                    f'sum by (JOB, shard) (rate({_ACTIVITY}{{RUN,activity=~"queue|apply"}}{_RATE})) / '
                    f"sum by (JOB, shard) ({_PUSHES})",
                    "shard {{shard}}",
                )
            ],
            "s",
            ranked="highest",
        ),
        Panel(
            "What a push takes",
            "Mean of all shards: receive its chunks, queue for admission, apply it; send is the pulls that belong to "
            "it, pace what the job's pace makes calls wait.",
            [
                (
                    f"sum by (JOB, activity) (rate({_ACTIVITY}{{RUN}}{_RATE})) / on (JOB) group_left () "
                    f"sum by (JOB) ({_PUSHES})",
                    "{{activity}}",
                )
            ],
            "s",
            stacked=True,
        ),
        Panel(
            "Calls that wait",
            "Pushes and pulls that wait for admission now.",
            [
                (
                    "sum by (JOB, shard) (downpour_shard_pushes_waiting{RUN} + downpour_shard_pulls_waiting{RUN})",
                    "shard {{shard}}",
                )
            ],
            "locale",
            up_to=1,
            ranked="highest",
        ),
        Panel(
            "Pushes a second by shard",
            "The same for all shards, since every push goes to each of them; the slowest is on top of the table.",
            [(f"sum by (JOB, shard) ({_PUSHES})", "shard {{shard}}")],
            ranked="lowest",
        ),
        Panel(
            "Bytes by shard",
            "Received in pushes and sent in pulls, together. Shards with larger slices have more.",
            [
                (
                    f"sum by (JOB, shard) (rate(downpour_shard_received_bytes_total{{RUN}}{_RATE}) + "
                    f"rate(downpour_shard_sent_bytes_total{{RUN}}{_RATE}))",
                    "shard {{shard}}",
                )
            ],
            "binBps",
            ranked="highest",
        ),
        Panel(
            "Version",
            "Updates applied. Lines run together, but for what comes between two scrapes, unless a shard was restored "
            "from a checkpoint; the one that is furthest behind is on top of the table.",
            [("max by (JOB, shard) (downpour_shard_version{RUN})", "shard {{shard}}")],
            "locale",
            ranked="lowest",
        ),
    ),
    "Calls, strangers, evaluator": (
        Panel(
            "Duration of calls, 99 %",
            "Of all servers, by method, without NextCheckpoint, which waits until there is one. Methods that were not "
            "called have no line.",
            [
                (
                    f'label_replace(histogram_quantile(0.99, {_DURATION}) >= 0, "method", "$1", "grpc_method", '
                    '"(?:.*/)?(.*)")',
                    "{{method}}",
                )
            ],
            "s",
            ranked="highest",
        ),
        Panel(
            "Calls a second by status",
            "Anything but OK is a refusal, a retry or a caller that has died.",
            [(_CALLS, "{{grpc_status}}")],
        ),
        Panel(
            "Strangers",
            "Calls refused and connections ended, by reason. Token and role: somebody without the job's credentials.",
            [
                ("sum by (JOB, reason) (downpour_server_calls_refused_total{RUN})", "calls: {{reason}}"),
                ("sum by (JOB, reason) (downpour_server_connections_ended_total{RUN})", "connections: {{reason}}"),
            ],
            "locale",
            up_to=1,
            ranked="highest",
        ),
        Panel(
            "Evaluator",
            "Step of the job, and of the checkpoint scored last; a growing distance means that scoring is too slow.",
            [
                ("max by (JOB) (downpour_job_step{RUN})", "job"),
                ("max by (JOB) (downpour_evaluator_step{RUN})", "scored"),
            ],
            "locale",
        ),
        Panel(
            "Processors",
            "Processor seconds a second of each process: 1 is one core. A shard is called ps here, by its role.",
            [(f"sum by (JOB, role, index) (rate(process_cpu_seconds_total{{RUN}}{_RATE}))", "{{role}} {{index}}")],
            ranked="highest",
        ),
        Panel(
            "Free disk",
            "Share that is free of the file systems that processes write to: of each role and folder the fullest. "
            "Lines of one file system lie on each other.",
            [
                (
                    "min by (JOB, role, folder) (downpour_disk_free_bytes{RUN} / downpour_disk_size_bytes{RUN})",
                    "{{role}} {{folder}}",
                )
            ],
            "percentunit",
            up_to=1,
        ),
    ),
    "Memory": (
        Panel(
            "Memory of shards",
            "PSS of each process, its arena included.",
            [("max by (JOB, shard) (downpour_shard_memory_bytes{RUN})", "shard {{shard}}")],
            "bytes",
            12,
            ranked="highest",
        ),
        Panel(
            "Memory of workers, chief, evaluator",
            "Resident memory of each process.",
            [('max by (JOB, role, index) (process_resident_memory_bytes{RUN,role!="ps"})', "{{role}} {{index}}")],
            "bytes",
            12,
            ranked="highest",
        ),
    ),
}
