"""Alert rules for Prometheus, as values and as the documents that Prometheus and its operator read. Pure.

Each alert has a name, PromQL, how long it must hold, a severity, and what it means and what to do. Expressions join
series of the chief and of others by `namespace` and `run`, labels of the targets, which may be missing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_JOB = "(namespace, run)"
_TRAINS = f'and on {_JOB} downpour_job_state{{state="training"}} == 1'
_RUNS = 'and on (namespace, run, worker) downpour_job_worker_state{state="running"} == 1'
_STEPS = "rate(downpour_job_worker_steps_total[5m])"


@dataclass(frozen=True)
class Alert:
    """One alert rule.

    Attributes:
        name: Its name.
        expression: PromQL.
        hold: How long it must hold, a duration of Prometheus.
        severity: `critical`: somebody must act now; `warning`: today.
        summary: One line, with `{{ $labels.x }}`.
        text: What it means, and what to do.
    """

    name: str
    expression: str
    hold: str
    severity: str
    summary: str
    text: str


ALERTS = (
    Alert(
        "DownpourChiefDown",
        'up{role="chief",run!=""} == 0',
        "2m",
        "critical",
        "The chief of {{ $labels.run }} does not answer",
        "Training goes on without it, but nobody leases records or writes checkpoints. Look at its log; a restarted "
        "chief continues from its journal.",
    ),
    Alert(
        "DownpourShardDown",
        f'downpour_job_shard_state{{state="ready"}} == 0 {_TRAINS}',
        "1m",
        "critical",
        "Shard {{ $labels.shard }} of {{ $labels.run }} is down",
        "It does not answer, or holds no parameters. Workers wait for it. Look at its log, its memory and its machine.",
    ),
    Alert(
        "DownpourJobFailed",
        'downpour_job_state{state="failed"} == 1',
        "0m",
        "critical",
        "The job {{ $labels.run }} has failed",
        "`downpour status` says why; the parameters before the failure are in a checkpoint.",
    ),
    Alert(
        "DownpourUpdatesLost",
        'increase(downpour_job_faults_total{kind="updates_lost"}[10m]) > 0',
        "0m",
        "warning",
        "A shard of {{ $labels.run }} lost updates",
        "It lost its memory and was restored from a checkpoint. If this recurs, write checkpoints more often.",
    ),
    Alert(
        "DownpourStalenessGrows",
        "avg_over_time(downpour_job_staleness_mean[5m]) > 1 and avg_over_time(downpour_job_staleness_mean[5m]) > "
        f"2 * avg_over_time(downpour_job_staleness_mean[1h] offset 5m) {_TRAINS}",
        "5m",
        "warning",
        "Staleness of {{ $labels.run }} has doubled",
        "Pushes come from older parameters than an hour ago, which costs score. Workers were added, or shards or some "
        "workers have become slower: see the panels Time of a push by shard and Seconds a step by worker.",
    ),
    Alert(
        "DownpourWorkerLost",
        f'downpour_job_worker_state{{state="lost"}} == 1 {_TRAINS}',
        "5m",
        "warning",
        "Worker {{ $labels.worker }} of {{ $labels.run }} is lost",
        "It has not reported within its lease and has not come back. Its records are trained on by others. Look at its "
        "log and its machine.",
    ),
    Alert(
        "DownpourWorkerStuck",
        f"{_STEPS} == 0 {_RUNS} {_TRAINS}",
        "5m",
        "warning",
        "Worker {{ $labels.worker }} of {{ $labels.run }} reports and makes no steps",
        "It waits for data, for a shard or for other workers. See whether calls wait at a shard, then its log and its "
        "disk.",
    ),
    Alert(
        "DownpourWorkerSlow",
        f"{_STEPS} > 0 and {_STEPS} < on {_JOB} group_left () (0.5 * avg by {_JOB} ({_STEPS})) {_RUNS} {_TRAINS}",
        "10m",
        "warning",
        "Worker {{ $labels.worker }} of {{ $labels.run }} makes less than half of the mean of steps",
        "See which part of its step takes longer than that of others: input, compute or wait.",
    ),
    Alert(
        "DownpourCheckpointTooOld",
        "downpour_job_step - (downpour_job_checkpoint_step or 0 * downpour_job_step) > "
        f"3 * downpour_job_checkpoint_every_steps {_TRAINS}",
        "5m",
        "critical",
        "The newest checkpoint of {{ $labels.run }} is {{ $value }} steps old",
        "Checkpoints fail or do not come. The chief's log says why: mostly a full disk, or a store that refuses.",
    ),
    Alert(
        "DownpourDiskFilling",
        "downpour_disk_free_bytes < 0.05 * downpour_disk_size_bytes or (downpour_disk_free_bytes < 0.3 * "
        "downpour_disk_size_bytes and predict_linear(downpour_disk_free_bytes[1h], 4 * 3600) < 0)",
        "5m",
        "critical",
        "The {{ $labels.folder }} disk of {{ $labels.run }} is full or will be in four hours",
        "Checkpoints can no longer be written then. Make room, or keep fewer checkpoints.",
    ),
    Alert(
        "DownpourPushesRefused",
        "increase(downpour_shard_pushes_refused_total[10m]) > 0",
        "0m",
        "critical",
        "Shard {{ $labels.shard }} of {{ $labels.run }} refused pushes with numbers that are not finite",
        "A worker computes NaN or infinity. Lower the learning rate, clip gradients, or look at that worker's data.",
    ),
    Alert(
        "DownpourStrangers",
        'increase(downpour_server_calls_refused_total{reason=~"role|token"}[10m]) > 0 or '
        "increase(downpour_server_connections_ended_total[10m]) > 10",
        "0m",
        "warning",
        "Somebody without the credentials of {{ $labels.run }} calls {{ $labels.role }} {{ $labels.index }}",
        "A process with a wrong token or certificate, or a scan of the network. See docs/security.md.",
    ),
)


def groups() -> dict[str, Any]:
    """Returns what a rule file of Prometheus holds, and the `spec` of a PrometheusRule."""
    return {"groups": [{"name": "downpour", "rules": [_rule(alert) for alert in ALERTS]}]}


def _rule(alert: Alert) -> Mapping[str, Any]:
    return {
        "alert": alert.name,
        "expr": alert.expression,
        "for": alert.hold,
        "labels": {"severity": alert.severity},
        "annotations": {"summary": alert.summary, "description": alert.text},
    }
